"""Convolutions of small, wide maps written out, against PyTorch's own in float64 and in bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from sandglass.engine.convolution import CHANNELS, IMAGES, convolve, weight_gradient

MAPS = [((3, 3), (1, 1), (4, 4)), ((3, 3), (1, 1), (2, 3)), ((3, 3), (0, 0), (4, 6)), ((2, 5), (1, 2), (3, 4))]
MAPS += [((3, 3), (1, 1), (1, 1)), ((5, 5), (2, 2), (1, 2)), ((1, 3), (0, 1), (2, 2))]  # taps that meet nothing


def numbers(kernel, size, images=IMAGES, channels=(CHANNELS, CHANNELS + 32), dtype=torch.float32):
    """x (images, C, *size) with channels last and weights (O, C, *kernel), which autograd follows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels[0], *size, generator=generator)
    weight = torch.randn(channels[1], channels[0], *kernel, generator=generator) / 50
    return [t.contiguous(memory_format=torch.channels_last).to(dtype).requires_grad_() for t in (x, weight)]


def taught(convolution, x, weight, **settings):
    """The result, and both gradients of its sum against fixed numbers."""
    out = convolution(x, weight, **settings)
    generator = torch.Generator().manual_seed(1)
    grads = torch.autograd.grad(out, (x, weight), torch.randn(out.shape, generator=generator).to(out.dtype))
    return [t.detach().double() for t in (out, *grads)]


def distance(found, true):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


@pytest.mark.parametrize(("kernel", "padding", "size"), MAPS)
def test_the_gradient_of_the_weights_is_autograds(kernel, padding, size):
    x, weight = numbers(kernel, size, images=3, channels=(5, 7), dtype=torch.float64)
    out = F.conv2d(x, weight, padding=padding)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    (true,) = torch.autograd.grad(out, weight, grad)
    torch.testing.assert_close(weight_gradient(x.detach(), grad, kernel, padding), true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "padding", "size"), MAPS)
def test_it_is_written_out_and_no_further_from_the_truth_than_the_kernel(kernel, padding, size):
    leaves = numbers(kernel, size)
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in leaves]
    true = taught(F.conv2d, *rounded, padding=padding)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(*leaves, None, 1, padding).grad_fn.name().startswith("_SmallMaps")
        ours, kernels = (distance(taught(f, *leaves, padding=padding), true) for f in (convolve, F.conv2d))
    assert ours < 0.005  # bfloat16 has steps of 0.004 to 0.008
    assert ours < 1.1 * kernels


def test_sums_over_many_images_are_not_rounded_on_the_way():
    """Summed image by image in bfloat16, the same gradient is far off."""
    x, weight = (t.detach().bfloat16() for t in numbers((3, 3), (2, 2), images=256))
    grad = torch.randn(256, CHANNELS + 32, 2, 2, generator=torch.Generator().manual_seed(2)).bfloat16()
    true = weight_gradient(x.double(), grad.double(), (3, 3), (1, 1))

    def error(found):
        return float((found.double() - true).norm() / true.norm())

    one_by_one = torch.zeros_like(weight)
    for image, its in zip(x.split(1), grad.split(1), strict=True):
        one_by_one += weight_gradient(image, its, (3, 3), (1, 1))
    assert error(weight_gradient(x, grad, (3, 3), (1, 1))) < 0.003 < 0.01 < error(one_by_one)


LEFT = {
    "few images": ({"images": IMAGES - 1}, {}),
    "narrow": ({"channels": (CHANNELS - 1, CHANNELS)}, {}),
    "large": ({"size": (5, 4)}, {}),
    "one cell": ({"kernel": (1, 1)}, {"padding": 0}),
    "bias": ({}, {"bias": torch.ones(CHANNELS + 32)}),
    "strides": ({}, {"stride": (2, 2)}),
    "dilation": ({}, {"dilation": 2}),
    "groups": ({"channels": (CHANNELS, 2 * CHANNELS)}, {"groups": 2}),
    "padding by name": ({}, {"padding": "same"}),
    "padding once": ({}, {"padding": (1,)}),
}


@pytest.mark.parametrize("which", LEFT)
def test_what_it_does_not_write_out_stays_with_pytorch(which):
    given, settings = LEFT[which]
    x, weight = numbers(**{"kernel": (3, 3), "size": (4, 4)} | given, dtype=torch.bfloat16)
    weight = weight[:, : x.shape[1] // settings.get("groups", 1)]
    settings = {"padding": 1} | settings
    if "bias" in settings:
        settings["bias"] = settings["bias"].bfloat16()
    found = convolve(x, weight, **settings)
    assert not found.grad_fn.name().startswith("_SmallMaps")
    assert torch.equal(found, F.conv2d(x, weight, **settings))
