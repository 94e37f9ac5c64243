"""Attention written out, against the formula in float64 and PyTorch's fused kernel."""

import pytest
import torch
import torch.nn.functional as F

from sandglass.engine.attention import attend

HERE, THERE = 17, 9  # tokens that look, and that are looked at
MASKS = {
    "none": None,
    "bools": torch.arange(HERE)[:, None] + 1 > torch.arange(THERE),
    "added": -torch.arange(THERE, dtype=torch.bfloat16).expand(HERE, THERE),
}


def heads(size: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 2, tokens, 12) for tokens in (HERE, THERE, THERE)]
    return [(size * torch.randn(shape, generator=generator)).bfloat16().requires_grad_() for shape in shapes]


def formula(q, k, v, mask=None, scale=None):
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * (12**-0.5 if scale is None else scale)
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


def taught(attention, tensors, *args, **settings):
    """The result, and the gradients of the first tensor's sum against fixed numbers."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = attention(*leaves, *args, **settings)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype))
    return [t.detach().double() for t in (out, *(leaf.grad for leaf in leaves))]


def distance(found, true):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_the_formula_and_no_further_from_it_than_the_kernel(mask, scale):
    given = {"attn_mask": MASKS[mask], "scale": scale}
    exact = taught(formula, [t.double() for t in heads()], MASKS[mask], scale)
    ours = distance(taught(attend, heads(), **given), exact)
    assert ours < 0.005  # bfloat16 has steps of 0.004 to 0.008
    assert ours < 1.1 * distance(taught(F.scaled_dot_product_attention, heads(), **given), exact)


def test_large_scores_are_not_rounded():
    """In bfloat16 a score of 30 would be wrong by up to 0.06, and the softmax with it."""
    exact = taught(formula, [t.double() for t in heads(size=3.0)])

    def rounded(q, k, v):
        return (q * 12**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v

    with torch.autocast("cpu", torch.bfloat16):  # as a step has it
        assert distance(taught(attend, heads(size=3.0)), exact) < 0.005
        assert distance(taught(rounded, heads(size=3.0)), exact) > 0.01


def test_dropout_drops_and_keeps_the_mean():
    with torch.no_grad():
        tensors = heads()
        assert not attend(*tensors, dropout_p=1.0).any()
        torch.manual_seed(0)
        drawn = torch.stack([attend(*tensors, dropout_p=0.5).float() for _ in range(2000)])
    torch.testing.assert_close(drawn.mean(0), attend(*tensors).detach().float(), rtol=0, atol=0.15)


def test_what_it_does_not_write_out_stays_with_pytorch():
    q, k, v = heads()
    for form in ({"is_causal": True}, {"enable_gqa": True}):
        assert torch.equal(attend(q, k, v, **form), F.scaled_dot_product_attention(q, k, v, **form))
    assert not torch.equal(attend(q, k, v), attend(q, k, v, is_causal=True))
