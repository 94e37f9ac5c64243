"""A model's weights as files: read whole or not at all, and written as timm loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sandglass.errors import Exit, Problem
from sandglass.runs import read_json, sha256, write_atomic, write_json


def load(encoder: Any, file: Path) -> None:
    """Load every weight of a run's file; only the classifier may be absent from it.

    Raises Problem B-350 (65) if they are another model's; B-351 (65) if the file is not the one that the run wrote.
    """
    weights, own = read(file), encoder.model.state_dict()
    head = {id(p) for p in encoder.model.get_classifier().parameters()}
    optional = {name for name, p in encoder.model.named_parameters() if id(p) in head}
    wrong = [f"{name} is missing" for name in own if name not in weights and name not in optional]
    wrong += [f"{name} is not in the model" for name in weights if name not in own]
    wrong += [
        f"{k}: {tuple(w.shape)}, the model has {tuple(own[k].shape)}"
        for k, w in weights.items()
        if k in own and w.shape != own[k].shape
    ]
    if wrong:
        raise Problem(
            "B-350", Exit.CONTENT, f"{len(wrong)} weights do not fit", where=str(file), why="\n".join(wrong[:5])
        )
    encoder.model.load_state_dict(weights, strict=False)


def read(file: Path) -> dict[str, Any]:
    """The tensors in a run's file, by name. Raises Problem B-351 (65) if its sha256 is not the one in result.json."""
    from safetensors.torch import load_file

    if sha256(file) != read_json(file.parent / "result.json")["files"][file.name]["sha256"]:
        raise Problem(
            "B-351",
            Exit.CONTENT,
            f"{file.name} is not what its run wrote",
            where=str(file),
            why=f"its {file.stat().st_size:,} bytes have another sha256 than result.json says",
            fix=f"`dvc checkout` brings recorded results back; or remove {file.parent} and run it again",
            kept="everything; nothing was loaded",
        )
    return load_file(file)


def save(folder: Path, encoder: Any, settings: dict[str, Any]) -> None:
    """model.safetensors and the config.json with which `timm.create_model('local-dir:FOLDER')` loads it."""
    from safetensors.torch import save as packed

    model = encoder.model
    config = {
        "architecture": settings["backbone"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": model.made_with,
        "pretrained_cfg": {
            "input_size": [3, settings["size"], settings["size"]],
            "mean": encoder.mean.flatten().tolist(),
            "std": encoder.std.flatten().tolist(),
            "num_classes": model.num_classes,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(folder / "model.safetensors", packed(weights))
    write_json(folder / "config.json", config)


def save_objective(folder: Path, objective: Any) -> None:
    """objective.safetensors: what `assign` needs, of an objective that makes clusters."""
    from safetensors.torch import save

    state = objective.state_dict()
    if kept := {name: state[name].cpu().contiguous() for name in state if name.startswith(objective.kept)}:
        write_atomic(folder / "objective.safetensors", save(kept))
