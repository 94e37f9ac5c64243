"""A model as an ONNX file, for programs without torch: it is kept only if ONNX Runtime computes what the model does.

Input `images`: float32 (batch, 3, size, size), normalised as for timm; the batch is free, the size is not. Output:
`logits` or `features`, (batch, width). The packages are those of the extra `onnx`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from sandglass.errors import Exit, Problem

FILE = "model.onnx"
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order differ by 1e-7 to 1e-5


def convert(folder: Path, size: int) -> float:
    """Write FILE beside the weights in `folder`, the export of a run; the largest difference, by the largest output.

    The difference is over batches of 1 and 5 images of noise, neither of which is the batch that was traced. Raises
    Problem: R-132 (78) the extra is not installed; R-133 (65) there is no such file, or it computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        fix = "pip install 'sandglass[onnx]'"
        raise Problem("R-132", Exit.CONFIG, "--onnx needs onnx, onnxscript and onnxruntime", fix=fix) from None
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True, exportable=True).eval()  # of simpler operations
    file = folder / FILE
    try:
        _write(plain, size, file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        difference = max(_difference(model, session, torch.randn(n, 3, size, size)) for n in (1, 5))
    except Exception as error:  # whatever an exporter and a runtime raise
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise _refused(file, "the model cannot be written as ONNX", why) from None
    if not difference <= TOLERANCE:
        what = f"the ONNX file's output is {difference:.1e} of the largest output away from the model's"
        raise _refused(file, what, f"float32 explains {TOLERANCE:.0e}")
    return difference


def _write(model: nn.Module, size: int, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch deprecates within itself
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),
            file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits" if model.num_classes else "features"],
            external_data=False,
            verbose=False,
        )


def _refused(file: Path, what: str, why: str) -> Problem:
    file.unlink(missing_ok=True)
    return Problem("R-133", Exit.CONTENT, what, why=why, fix="export without --onnx, and report this")


@torch.no_grad()
def _difference(model: nn.Module, session: Any, images: torch.Tensor) -> float:
    ours, theirs = model(images).numpy(), session.run(None, {"images": images.numpy()})[0]
    return float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-12))
