"""What we take from lightly is what we take it for. A symbol that is imported without a line here fails."""

import ast

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
    VicRegLLocalProjectionHead,
    VICRegProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import nn


def layers(head):
    """The layers in their order, in short: L linear, with + for a bias; B batch norm, N layer norm, with + if affine;
    R rectifier."""
    words = []
    for module in head.modules():
        if isinstance(module, nn.Linear):
            words.append("L+" if module.bias is not None else "L")
        elif isinstance(module, nn.BatchNorm1d):
            words.append("B+" if module.affine else "B")
        elif isinstance(module, nn.LayerNorm):
            words.append("N+" if module.elementwise_affine else "N")
        elif isinstance(module, nn.ReLU):
            words.append("R")
    return " ".join(words)


HEADS = {
    BYOLProjectionHead: ((8, 6, 4), "L B+ R L+"),
    BYOLPredictionHead: ((8, 6, 4), "L B+ R L+"),
    SimCLRProjectionHead: ((8, 6, 4), "L B+ R L B+"),
    SimSiamProjectionHead: ((8, 6, 4), "L B+ R L B+ R L B"),
    SimSiamPredictionHead: ((8, 6, 4), "L B+ R L+"),
    SwaVProjectionHead: ((8, 6, 4), "L B+ R L+"),
    BarlowTwinsProjectionHead: ((8, 6, 4), "L B+ R L B+ R L+"),
    VICRegProjectionHead: ((8, 6, 4), "L B+ R L B+ R L+"),  # a bias that variance, covariance and differences forget
    VicRegLLocalProjectionHead: ((8, 6, 4), "L N+ R L N+ R L+"),
    MoCoProjectionHead: ((8, 6, 4), "L+ R L+"),
}


def heads():
    for kind, (widths, expected) in HEADS.items():
        more = {"num_layers": 3} if kind is VICRegProjectionHead else {}
        assert layers(kind(*widths, **more)) == expected, kind.__name__
    block = ProjectionHead([(8, 6, nn.BatchNorm1d(6), nn.ReLU()), (6, 4, None, None)])
    assert layers(block) == "L B+ R L+"  # no bias where a norm follows


def negative_cosine_similarity():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    loss = NegativeCosineSimilarity()(a, b)
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(loss, -cosine.mean())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, (a, b)))  # it detaches nothing: we must


def masked_vision_transformer_decoder():
    decoder = MaskedVisionTransformerDecoderTIMM(4, embed_dim=8, depth=1, num_heads=2, num_prefix_tokens=0)
    tokens = torch.randn(3, 4, 8)
    assert decoder.mask_token.shape == (1, 1, 8)
    placed = decoder.add_pos_embed(tokens)
    assert not torch.allclose(placed - tokens, (placed - tokens).flip(1))  # places are told apart
    assert decoder.decode(placed).shape == (3, 4, 8)


def byol_transform():
    """What `bench` measures against: two views of a PIL image, with the given chances, in [0, 1] if not normalised."""
    none = {
        "input_size": 8,
        "min_scale": 1.0,
        "cj_prob": 0.0,
        "hf_prob": 0.0,
        "random_gray_scale": 0.0,
        "normalize": None,
    }
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    flat = torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1).expand(3, 8, 8)
    first = BYOLView1Transform(gaussian_blur=0.0, solarization_prob=0.0, **none)
    second = BYOLView2Transform(gaussian_blur=0.0, solarization_prob=1.0, **none)
    views = BYOLTransform(first, second)(image)
    torch.testing.assert_close(views[0], flat)
    torch.testing.assert_close(views[1], torch.where(flat > 0.5, 1 - flat, flat))


def momentum():
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    deactivate_requires_grad(average)
    assert not any(p.requires_grad for p in average.parameters())
    expected = 0.9 * average.weight + 0.1 * model.weight
    update_momentum(model, average, m=0.9)
    torch.testing.assert_close(average.weight, expected)


RELIED_ON = {
    **{kind.__name__: heads for kind in (*HEADS, ProjectionHead)},
    "NegativeCosineSimilarity": negative_cosine_similarity,
    "MaskedVisionTransformerDecoderTIMM": masked_vision_transformer_decoder,
    **dict.fromkeys(("BYOLTransform", "BYOLView1Transform", "BYOLView2Transform"), byol_transform),
    **dict.fromkeys(("deactivate_requires_grad", "update_momentum"), momentum),
}


def test_every_symbol_we_import_has_its_line(repo):
    used = set()
    for file in (repo / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightly"):
                used |= {alias.name for alias in node.names}
    assert used == set(RELIED_ON)


def test_heads():
    heads()


def test_negative_cosine_similarity():
    negative_cosine_similarity()


def test_masked_vision_transformer_decoder():
    masked_vision_transformer_decoder()


def test_byol_transform():
    byol_transform()


def test_momentum():
    momentum()
