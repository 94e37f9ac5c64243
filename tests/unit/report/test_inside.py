"""Attention against PyTorch's own, colours on maps of known structure, and a network looked into from its folder."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from sandglass.backbones.grid import build
from sandglass.data import catalog, pack
from sandglass.report import inside
from sandglass.runs import sha256


def test_attention_is_what_pytorch_says_it_is() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    _, weights = layer(x, x, x, need_weights=True)  # (B, queries, keys), mean over heads
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    with inside.Attention() as attention:
        out = F.scaled_dot_product_attention(q, k, v)
        F.scaled_dot_product_attention(q[:, :, :2], k, v)  # of two tokens to five: not to themselves
    assert len(attention.seen) == 1 and torch.equal(out, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(attention.seen[0], weights.mean(dim=1))


def test_a_mask_hides_what_it_hides() -> None:
    q = torch.zeros(1, 1, 4, 2)
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0]).expand(4, 4)
    with inside.Attention() as attention:
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert attention.seen[0].tolist() == [pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])]


def test_cells_that_are_alike_have_one_colour() -> None:
    kinds = torch.tensor([[[0, 0, 1], [2, 1, 1]], [[3, 3, 3], [2, 0, 0]]])  # (B,h,w)
    torch.manual_seed(0)
    grid = torch.randn(4, 7)[kinds].permute(0, 3, 1, 2)
    shown = inside.colours(grid).transpose(0, 2, 3, 1)
    assert shown.shape == (2, 2, 3, 3) and shown.min() >= 0 and shown.max() <= 1
    seen = {int(kind): {tuple(colour.round(6)) for colour in shown[kinds == kind]} for kind in range(4)}
    assert all(len(colours) == 1 for colours in seen.values()) and len(set.union(*seen.values())) == 4
    assert inside.colours(torch.zeros(1, 2, 2, 2)).shape == (1, 3, 2, 2)


def kept(weights: dict[str, torch.Tensor], run: Path) -> None:
    """As a run leaves them."""
    file = run / "model.safetensors"
    save_file(weights, file)
    (run / "result.json").write_text(json.dumps({"files": {file.name: {"sha256": sha256(file)}}}))


def left(folder: Path, name: str) -> tuple[Path, Path]:
    """The folder of a finished run of this backbone, and that of its data."""
    packed, run = folder / "data", folder / "run"
    pack.pack(
        catalog.resolve("digits", {}), None, packed, store_size=None, val_fraction=0.1, seed=0, on_bad_image="error"
    )
    run.mkdir()
    torch.manual_seed(0)
    encoder = build(name, 32, 0, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), {})
    kept({key: value.contiguous() for key, value in encoder.model.state_dict().items()}, run)
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    (run / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 0, "pretrained_cfg": about}))
    (run / "run.json").write_text(json.dumps({"settings": {"size": 32, "arguments": {}}}))
    return run, packed


def test_an_hourglass_shows_its_stages_and_where_it_looks(tmp_path: Path) -> None:
    run, packed = left(tmp_path, "hourglass_c8")
    gallery = inside.gallery(run, packed)
    assert gallery is not None
    assert gallery.head == [
        "image", "before.0, 312×8×8", "before.0, attention", "before.1, 312×4×4", "before.1, attention",
        "output, 312×8×8", "output, attention",
    ]  # fmt: skip
    assert {len(row) for row in gallery.rows} == {len(gallery.head)} and len(gallery.rows) == inside.IMAGES
    assert inside.gallery(run, packed) == gallery, "the same network, the same pictures"


def test_the_blocks_of_a_flat_network_are_one_stage_seen_where_it_ends(tmp_path: Path) -> None:
    run, packed = left(tmp_path, "vit_tiny_flat")
    gallery = inside.gallery(run, packed)
    assert gallery is not None
    assert gallery.head == ["image", "blocks.2, 64×8×8", "blocks.2, attention"]
    weights = load_file(run / "model.safetensors")
    weights["blocks.2.attn.qkv.weight"][:128] = 0  # queries and keys of the last block: it looks everywhere alike
    weights["blocks.2.attn.qkv.bias"][:128] = 0
    kept(weights, run)
    blind = inside.gallery(run, packed)
    assert blind is not None
    for before, row in zip(gallery.rows, blind.rows):
        assert before[2] != row[2] and len({row[2][0].address for row in blind.rows}) == 1


@pytest.mark.parametrize("name", ["nest312", "hiera_tiny_224"])
def test_windows_are_not_taken_for_the_whole(tmp_path: Path, name: str) -> None:
    gallery = inside.gallery(*left(tmp_path, name))
    assert gallery is not None and len(gallery.head) > 3
    first = gallery.head[1].partition(",")[0]
    assert f"{first}, attention" not in gallery.head


def test_convolutions_have_stages_and_no_attention(tmp_path: Path) -> None:
    gallery = inside.gallery(*left(tmp_path, "resnet_toy"))
    assert gallery is not None and len(gallery.head) > 3
    assert not [name for name in gallery.head if "attention" in name]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    run, packed = left(tmp_path, "resnet_toy")
    kept({"x": torch.zeros(1)}, run)
    with pytest.raises(RuntimeError, match="Missing key"):
        inside.gallery(run, packed)
