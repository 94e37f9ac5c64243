"""Every operation against torchvision (float) and Pillow (8 bits), image by image, and against cases worked by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as pillow_functional
from torchvision.transforms.v2 import functional as reference

from sandglass.views import ops


def smooth_noise(n: int, height: int = 224, width: int = 224) -> Tensor:
    """(n, 3, H, W) in whole 255ths, each image stretched over the full range."""
    generator = torch.Generator().manual_seed(1)
    noise = reference.gaussian_blur(torch.randn(n, 3, height, width, generator=generator), [17, 17], [2.0, 2.0])
    low, high = noise.amin((1, 2, 3), keepdim=True), noise.amax((1, 2, 3), keepdim=True)
    return ((noise - low) / (high - low) * 255).round() / 255


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def levels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float()


FACTORS = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.5, 1.8])
SHIFTS = torch.tensor([-0.5, -0.2, 0.0, 0.05, 0.1, 0.37])


def blended(kind: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, factor: ops.blend_(x.clone(), torch.full((len(x),), kind), factor)


brightness, contrast, saturation = map(blended, (ops.BRIGHTNESS, ops.CONTRAST, ops.SATURATION))
POINTWISE = {
    "brightness": (brightness, reference.adjust_brightness, FACTORS),
    "contrast": (contrast, reference.adjust_contrast, FACTORS),
    "saturation": (saturation, reference.adjust_saturation, FACTORS),
    "grey": (lambda x, _: ops.grey(x), lambda x, _: reference.rgb_to_grayscale(x, num_output_channels=3), FACTORS),
    "solarize": (lambda x, _: ops.solarize(x), lambda x, _: reference.solarize(x, 128 / 255), FACTORS),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_operations_equal_torchvision(name: str) -> None:
    """Six images with six factors in one batch, each as if it were treated alone."""
    ours, theirs, parameters = POINTWISE[name]
    images = smooth_noise(6, 40, 56)
    expected = torch.stack([theirs(image, p.item()) for image, p in zip(images, parameters)])
    torch.testing.assert_close(ours(images, parameters), expected, atol=1e-5, rtol=0)


def test_hue_equals_torchvision() -> None:
    images = smooth_noise(6, 40, 56)
    images[0, :, :8] = 0.25  # grey: hue undefined, must stay
    images[0, :, 8:16] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)  # the seam of the colour circle
    images[0, :, 16:24] = torch.tensor([0.6, 0.6, 0.1]).view(3, 1, 1)  # two channels tie
    expected = torch.stack([reference.adjust_hue(image, s.item()) for image, s in zip(images, SHIFTS)])
    torch.testing.assert_close(ops.hue_(images, SHIFTS), expected, atol=1e-4, rtol=0)


def test_hue_turns_red_to_green_to_blue() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    for third, colour in enumerate(([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])):
        turned = ops.hue_(red.clone(), torch.tensor([third / 3]))
        torch.testing.assert_close(turned.flatten(), torch.tensor(colour), atol=1e-6, rtol=0)


# Mean error in 255ths that an exact operation has against Pillow's 8-bit one (it truncates blends, approximates blur).
HALF, MORE = torch.tensor([0.5]), torch.tensor([1.5])
AGAINST_PILLOW = {
    "darker": (0.31, lambda x: brightness(x, HALF), lambda p: ImageEnhance.Brightness(p).enhance(0.5)),
    "brighter": (0.31, lambda x: brightness(x, MORE), lambda p: ImageEnhance.Brightness(p).enhance(1.5)),
    "less contrast": (0.38, lambda x: contrast(x, HALF), lambda p: ImageEnhance.Contrast(p).enhance(0.5)),
    "more contrast": (0.38, lambda x: contrast(x, MORE), lambda p: ImageEnhance.Contrast(p).enhance(1.5)),
    "less colour": (0.44, lambda x: saturation(x, HALF), lambda p: ImageEnhance.Color(p).enhance(0.5)),
    "more colour": (0.44, lambda x: saturation(x, MORE), lambda p: ImageEnhance.Color(p).enhance(1.5)),
    "hue": (1.5 / 1.05, lambda x: ops.hue_(x.clone(), HALF / 5), lambda p: pillow_functional.adjust_hue(p, 0.1)),
    "grey": (0.25, ops.grey, lambda p: p.convert("L")),
    "solarize": (0.0, ops.solarize, lambda p: ImageOps.solarize(p, 128)),
    "blur 0.5": (0.69, lambda x: ops.gaussian_blur(x, HALF, 6), lambda p: p.filter(ImageFilter.GaussianBlur(0.5))),
    "blur 1": (0.62, lambda x: ops.gaussian_blur(x, HALF * 2, 6), lambda p: p.filter(ImageFilter.GaussianBlur(1))),
    "blur 2": (0.45, lambda x: ops.gaussian_blur(x, HALF * 4, 6), lambda p: p.filter(ImageFilter.GaussianBlur(2))),
}


@pytest.mark.parametrize("name", AGAINST_PILLOW)
def test_operations_match_pillow(name: str) -> None:
    bound, ours, theirs = AGAINST_PILLOW[name]
    image = smooth_noise(1)
    error = (ours(image)[0] * 255 - levels(theirs(to_pillow(image[0])))).abs().mean().item()
    assert error <= 1.05 * bound + 1e-4


# --- resampling ---------------------------------------------------------------------------------------------------

BOXES = torch.tensor(  # top, left, height, width: shrinking, growing, both, whole, one pixel, a single row
    [[3, 5, 90, 110], [0, 0, 20, 17], [30, 2, 70, 15], [0, 0, 100, 120], [50, 60, 1, 1], [99, 0, 1, 120]]
)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 96])
def test_crop_equals_torchvision_on_a_padded_canvas(interpolation: str, size: int) -> None:
    images = smooth_noise(len(BOXES), 100, 120)
    canvas = torch.rand(len(BOXES), 3, 130, 128)  # what lies beyond the true size is noise
    canvas[:, :, :100, :120] = images
    ours = ops.resample(canvas, *ops.crop_spans(BOXES), size, interpolation)
    mode = reference.InterpolationMode(interpolation)
    for image, box, crop in zip(images, BOXES.tolist(), ours):
        expected = reference.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True)
        torch.testing.assert_close(crop, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("interpolation", "bound", "method"),
    [("bilinear", 0.30, Image.Resampling.BILINEAR), ("bicubic", 0.31, Image.Resampling.BICUBIC)],
)
def test_crop_matches_pillow(interpolation: str, bound: float, method: Image.Resampling) -> None:
    image, box = smooth_noise(1), torch.tensor([[20, 31, 150, 133]])
    ours = ops.resample(image, *ops.crop_spans(box), 96, interpolation)[0].clamp(0, 1) * 255
    expected = to_pillow(image[0]).crop((31, 20, 31 + 133, 20 + 150)).resize((96, 96), method)
    assert (ours - levels(expected)).abs().mean().item() <= 1.05 * bound


def test_shrinking_averages_instead_of_skipping() -> None:
    """One-pixel stripes are grey at half the size; a resize without anti-aliasing keeps or loses them."""
    stripes = torch.arange(64).remainder(2).float().expand(1, 3, 64, 64)
    half = ops.resample(stripes, *ops.crop_spans(torch.tensor([[0, 0, 64, 64]])), 32)
    torch.testing.assert_close(half[..., 1:-1], torch.full((1, 3, 32, 30), 0.5))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_no_pixel_outside_the_crop_is_read(interpolation: str) -> None:
    inside = torch.randint(0, 256, (6, 3, 100, 120), dtype=torch.uint8)
    pixels = torch.arange(120)
    within = torch.zeros(6, 100, 120, dtype=torch.bool)
    for mask, (top, left, height, width) in zip(within, BOXES.tolist()):
        mask[top : top + height, left : left + width] = True
    crops = [
        ops.resample(torch.where(within[:, None], inside, beyond), *ops.crop_spans(BOXES), 48, interpolation)
        for beyond in (torch.tensor(0, dtype=torch.uint8), torch.tensor(255, dtype=torch.uint8), pixels.byte())
    ]
    assert torch.equal(crops[0], crops[1]) and torch.equal(crops[0], crops[2])


@pytest.mark.parametrize("size", [120, 150])
def test_enlarging_is_resampling_and_reads_nothing_outside_the_image(size: int) -> None:
    canvas = torch.randint(0, 256, (6, 3, 130, 128), dtype=torch.uint8)
    rows, columns = ops.crop_spans(BOXES)
    spans = ops.mirror(rows, torch.arange(6) % 2 == 0), ops.mirror(columns, torch.arange(6) % 3 == 0)
    ours = ops.enlarge(canvas, *spans, size)
    torch.testing.assert_close(ours, ops.resample(canvas, *spans, size), atol=0.03, rtol=0)  # of 255, on white noise
    canvas[:, :, 100:], canvas[..., 120:] = 0, 255  # the boxes are of images of 100 x 120
    assert torch.equal(ops.enlarge(canvas, *spans, size), ours)


def test_a_window_holds_all_that_the_crops_read() -> None:
    """Crops of at most 40 pixels a side of images of 100 x 120: in the corners, in the middle, flipped."""
    canvas = torch.randint(0, 256, (5, 3, 130, 128), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 40, 40], [60, 80, 40, 40], [99, 119, 1, 1], [33, 20, 17, 40], [5, 90, 40, 12]])
    rows, columns = ops.crop_spans(boxes)
    spans = ops.mirror(rows, torch.arange(5) % 2 == 0), ops.mirror(columns, torch.arange(5) % 3 == 0)
    cut, *inside = ops.window(canvas, *spans, 40)
    assert cut.shape == (5, 3, 40, 40) and cut.dtype == torch.uint8
    torch.testing.assert_close(ops.resample(cut, *inside, 24), ops.resample(canvas, *spans, 24), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "scale_max"), [(96, 96, 0.14), (96, 96, 1.0), (64, 400, 1.0), (64, 400, 0.05), (50, 70, 0.3)]
)
def test_no_crop_is_larger_than_the_largest(height: int, width: int, scale_max: float) -> None:
    sizes, generator = torch.tensor([[height, width]]), torch.Generator().manual_seed(0)
    boxes = ops.draw_crop(torch.rand(100_000, 22, generator=generator), sizes, (0.02, scale_max))
    largest = ops.largest_crop(torch.cat((sizes, torch.tensor([[8, 8]]))), scale_max)
    assert 0.95 * largest <= boxes[:, 2:].max() <= largest or largest == width  # where a crop of all may be too long


def test_identity_crop_is_exact() -> None:
    image = smooth_noise(1, 48, 48)
    whole = ops.crop_spans(torch.tensor([[0, 0, 48, 48]]))
    assert torch.equal(ops.resample(image, *whole, 48), image)
    assert torch.equal(ops.resample(image, *whole, 48, "bicubic"), image)


def test_mirrored_spans_are_flips_of_the_crop() -> None:
    images = smooth_noise(6, 100, 120)
    rows, columns = ops.crop_spans(BOXES)
    plain = ops.resample(images, rows, columns, 32)
    gate = torch.tensor([True, False, True, False, True, True])
    across = ops.resample(images, rows, ops.mirror(columns, gate), 32)
    down = ops.resample(images, ops.mirror(rows, gate), columns, 32)
    on = gate.view(-1, 1, 1, 1)
    torch.testing.assert_close(across, torch.where(on, plain.flip(3), plain), atol=1e-5, rtol=0)
    torch.testing.assert_close(down, torch.where(on, plain.flip(2), plain), atol=1e-5, rtol=0)


def test_quarter_turn_is_counter_clockwise() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2)
    assert ops.quarter_turn(image)[0, 0].tolist() == [[2.0, 4.0], [1.0, 3.0]]


@pytest.mark.parametrize(("height", "width"), [(64, 400), (400, 64)])
def test_crop_falls_back_to_the_largest_central_one(height: int, width: int) -> None:
    """From 90 % of a 1 : 6.25 image no proposal of ratio 3/4 .. 4/3 fits: the centre 64 x 85 (or 85 x 64) is taken."""
    boxes = ops.draw_crop(torch.rand(50, 22), torch.tensor([[height, width]]), (0.9, 1.0))
    expected = [0, (400 - 85) // 2, 64, 85] if width > height else [(400 - 85) // 2, 0, 85, 64]
    assert boxes.tolist() == [expected] * 50


def test_crop_falls_back_to_the_whole_image() -> None:
    """A square image and an area beyond it: the ratio of the image itself is allowed, so all of it is taken."""
    boxes = ops.draw_crop(torch.rand(20, 22), torch.full((20, 2), 50), (1.5, 1.6))
    assert boxes.tolist() == [[0, 0, 50, 50]] * 20


# --- colour jitter and blur ---------------------------------------------------------------------------------------


def test_colour_jitter_applies_each_samples_own_order() -> None:
    theirs = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    u = torch.rand(24, 9, generator=torch.Generator().manual_seed(3))
    order, factors = ops.draw_jitter(u, 0.8, (0.8, 0.8, 0.8, 0.2))
    assert {tuple(row) for row in order.tolist()} > {(-1, -1, -1, -1)}  # some left alone, the others in several orders
    images = smooth_noise(24, 24, 40)
    expected = images.clone()
    for i, turns in enumerate(order.tolist()):
        for kind in turns:
            if kind >= 0:
                expected[i] = theirs[kind](expected[i], factors[i, kind].item())
    ops.colour_jitter(images, order, factors)
    torch.testing.assert_close(images, expected, atol=2e-4, rtol=0)


def test_the_order_of_adjustments_matters() -> None:
    image, factors = smooth_noise(1, 40, 40), torch.tensor([[1.7, 1.6, 1.0, 0.0]])
    first, second = image.clone(), image.clone()
    ops.colour_jitter(first, torch.tensor([[0, 1, 2, 3]]), factors)
    ops.colour_jitter(second, torch.tensor([[1, 0, 2, 3]]), factors)
    assert (first - second).abs().mean() > 0.02


def test_no_strength_no_change() -> None:
    order, factors = ops.draw_jitter(torch.rand(200, 9), 1.0, (0.4, 0.0, 0.4, 0.0))
    assert (order.sort(1).values == torch.arange(4)).all()
    assert (factors[:, 1] == 1).all() and (factors[:, 3] == 0).all()
    assert (factors[:, 0] >= 0.6).all() and (factors[:, 0] <= 1.4).all() and factors[:, 0].std() > 0.1


def test_blur_equals_torchvision() -> None:
    images, sigmas = smooth_noise(4, 40, 56), torch.tensor([0.1, 0.5, 1.3, 2.0])
    expected = torch.stack([reference.gaussian_blur(x, [13, 13], [s.item()] * 2) for x, s in zip(images, sigmas)])
    torch.testing.assert_close(ops.gaussian_blur(images, sigmas, 6), expected, atol=1e-5, rtol=0)


def test_blur_spreads_an_impulse_by_sigma_and_keeps_a_constant() -> None:
    impulse = torch.zeros(1, 3, 41, 41)
    impulse[..., 20, 20] = 1
    spread = ops.gaussian_blur(impulse, torch.tensor([1.5]), 8)[0, 0].sum(0)
    variance = (spread * (torch.arange(41) - 20) ** 2).sum()
    assert math.isclose(variance.sqrt().item(), 1.5, rel_tol=2e-3)
    constant = torch.full((1, 3, 9, 9), 0.7)
    torch.testing.assert_close(ops.gaussian_blur(constant, torch.tensor([2.0]), 6), constant)


def test_blur_of_what_is_smaller_than_its_reach() -> None:
    image, sigma = torch.rand(1, 3, 5, 7), torch.tensor([1.0])
    expected = reference.gaussian_blur(image, [9, 9], [1.0, 1.0])
    torch.testing.assert_close(ops.gaussian_blur(image, sigma, 30), expected, atol=1e-5, rtol=0)


def test_solarize_turns_over_at_128() -> None:
    ramp = torch.tensor([0, 127, 128, 255]).div(255).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert (ops.solarize(ramp)[0, 0, 0] * 255).round().tolist() == [0, 127, 127, 0]


def test_only_touches_the_chosen_samples() -> None:
    images = smooth_noise(4, 16, 16)
    before, factors = images.clone(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    ops.only(images, torch.tensor([False, True, False, True]), brightness, factors)
    assert torch.equal(images[0::2], before[0::2])
    torch.testing.assert_close(images[1], before[1] * 0.2)
    torch.testing.assert_close(images[3], before[3] * 0.4)


# --- changes of place ---------------------------------------------------------------------------------------------


def test_local_rotation_worked_by_hand() -> None:
    """The 3 x 3 patch with its corner at row 1, column 0, one quarter turn: its right column becomes its top row."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    turned = ops.local_rotation(image, torch.tensor([[3, 1, 0, 1]]))[0, 0]
    assert turned.tolist() == [[0, 1, 2, 3], [6, 10, 14, 7], [5, 9, 13, 11], [4, 8, 12, 15]]


def test_local_rotation_turns_the_patch_and_nothing_else() -> None:
    images = torch.rand(5, 3, 20, 28)
    patches = torch.tensor([[2, 0, 0, 1], [10, 9, 17, 2], [7, 3, 20, 3], [5, 6, 6, 0], [10, 2, 3, 1]])
    expected = images.clone()
    for image, (side, top, left, turns) in zip(expected, patches.tolist()):
        patch = image[:, top : top + side, left : left + side]
        image[:, top : top + side, left : left + side] = torch.rot90(patch, turns, (1, 2))
    assert torch.equal(ops.local_rotation(images, patches), expected)


def test_region_confusion_moves_whole_cells_at_32() -> None:
    """4 x 4 cells of 8 pixels, nothing trimmed: a permutation of pixels, cell by cell."""
    image = torch.rand(2, 3, 32, 32)
    source = torch.stack((torch.arange(16), torch.randperm(16, generator=torch.Generator().manual_seed(2))))
    moved = ops.region_confusion(image, source)
    assert torch.equal(moved[0], image[0])
    for place, cell in enumerate(source[1].tolist()):
        to, origin = divmod(place, 4), divmod(cell, 4)
        ours = moved[1, :, to[0] * 8 : to[0] * 8 + 8, to[1] * 8 : to[1] * 8 + 8]
        assert torch.equal(ours, image[1, :, origin[0] * 8 : origin[0] * 8 + 8, origin[1] * 8 : origin[1] * 8 + 8])


@pytest.mark.parametrize(("trim", "cut", "tile"), [(10, 5, 30), (20, 10, 29)])
def test_region_confusion_at_224_follows_dcls_steps_in_pillow(trim: int, cut: int, tile: int) -> None:
    """Cut 5 (or DCL's own 10), split 214 (204) at whole pixels, each tile to 30 (29) by Lanczos, paste, to 224."""
    image = smooth_noise(1)
    source = ops.draw_confusion(torch.rand(1, 48, generator=torch.Generator().manual_seed(5)), 7)
    trimmed = to_pillow(image[0]).crop((cut, cut, 224 - cut, 224 - cut))
    edges, mosaic = [(224 - 2 * cut) * i // 7 for i in range(8)], Image.new("RGB", (7 * tile, 7 * tile))
    for place, cell in enumerate(source[0].tolist()):
        row, column = divmod(cell, 7)
        piece = trimmed.crop((edges[column], edges[row], edges[column + 1], edges[row + 1]))
        mosaic.paste(piece.resize((tile, tile), Image.Resampling.LANCZOS), (place % 7 * tile, place // 7 * tile))
    expected = levels(mosaic.resize((224, 224), Image.Resampling.BICUBIC))
    # Pillow rounds after each direction of each of the two resizes; each alone has a mean error of 0.25 to 0.3
    assert (ops.region_confusion(image, source, trim)[0] * 255 - expected).abs().mean().item() < 0.6
