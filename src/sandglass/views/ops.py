"""Image operations on a batch in which every sample has its own parameters.

Drawing is apart from applying. A `draw_*` function takes a CPU generator and returns CPU tensors whose first dimension
is the sample; an operation takes float images (B, C, H, W) in [0, 1] on any device together with such parameters, is
deterministic, and returns new images of that range. `only` applies an operation to the samples whose gate is on and
leaves the others untouched. The definitions are torchvision's (Pillow's, but for its rounding to 8 bits), so one image
treated alone gives the same pixels; no pixel outside an image's true size is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue in luma, as torchvision rounds them


def draw_uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    """(n,) float64 from U[low, high)."""
    return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)


def draw_gate(n: int, probability: float | Tensor, generator: Generator) -> Tensor:
    """(n,) bool: one coin a sample; all of one probability, or each (n,) of its own."""
    return draw_uniform(n, 0, 1, generator) < probability


def draw_below(limit: Tensor, generator: Generator) -> Tensor:
    """Whole numbers, uniform over 0 .. limit-1, in the shape of `limit` (int64)."""
    return (torch.rand(limit.shape, generator=generator, dtype=torch.float64) * limit).long()


def only(images: Tensor, gate: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """In place: images[gate] = operation(images[gate], parameters[gate]). gate (B,) is on the CPU: no device sync."""
    chosen = gate.nonzero().squeeze(1)
    if len(chosen):
        there = chosen.to(images.device)
        values = (parameter.index_select(0, chosen) for parameter in parameters)
        images.index_copy_(0, there, operation(images.index_select(0, there), *values))


def _each(values: Tensor, images: Tensor) -> Tensor:
    """(B,) parameters beside (B, C, H, W) images: same device and type, (B, 1, 1, 1)."""
    return values.to(images.device, images.dtype).view(-1, 1, 1, 1)


# --- resampling: crop, flip and resize as two matrix products -----------------------------------------------------


def draw_crop(sizes: Tensor, scale: tuple[float, float], generator: Generator) -> Tensor:
    """Random resized crop (Inception, arXiv 1409.4842): (B, 4) int64 top, left, height, width.

    Ten proposals from the image's true size: area A = U(scale) H W, ratio r = exp U(ln 3/4, ln 4/3), sides sqrt(A r)
    and sqrt(A / r) rounded; the first that fits is taken, else the largest central crop with a ratio in 3/4 .. 4/3.
    """
    height, width = sizes.double().unbind(1)
    n, tries, narrow, wide = len(sizes), 10, 3 / 4, 4 / 3
    area = draw_uniform(tries * n, *scale, generator).view(tries, n) * height * width
    ratio = draw_uniform(tries * n, math.log(narrow), math.log(wide), generator).view(tries, n).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(0, keepdim=True)  # argmax names the first of equals
    place = torch.rand(2, n, generator=generator, dtype=torch.float64)
    largest_h = torch.minimum(height, (width / narrow).round())
    largest_w = torch.minimum(width, (height * wide).round())
    found = fits.any(0)
    h = torch.where(found, h.gather(0, first)[0], largest_h)
    w = torch.where(found, w.gather(0, first)[0], largest_w)
    top = torch.where(found, place[0] * (height - h + 1), (height - h).div(2)).floor()
    left = torch.where(found, place[1] * (width - w + 1), (width - w).div(2)).floor()
    return torch.stack((top, left, h, w), 1).long()


def crop_spans(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a crop, (B, 4) float64 each: begin and run of the output, low and high of reading."""
    top, left, height, width = boxes.double().unbind(1)
    return torch.stack((top, height, top, top + height), 1), torch.stack((left, width, left, left + width), 1)


def centre_spans(sizes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, (B, 4) each: the shorter side resized to `size`, then the centre `size` x `size` pixels."""
    shorter = sizes.amin(1)

    def axis(side: Tensor) -> Tensor:
        resized = side * size // shorter
        scale = side.double() / resized
        margin = ((resized - size) / 2).round()
        return torch.stack((margin * scale, size * scale, torch.zeros_like(scale), side.double()), 1)

    return axis(sizes[:, 0]), axis(sizes[:, 1])


def mirror(spans: Tensor, gate: Tensor) -> Tensor:
    """The same span read backwards where the gate (B,) is on: a flip that costs nothing."""
    begin, run, low, high = spans.unbind(1)
    backwards = torch.stack((begin + run, -run, low, high), 1)
    return torch.where(gate.unsqueeze(1), backwards, spans)


def _triangle(x: Tensor) -> Tensor:
    return x.neg_().add_(1).clamp_(min=0)


def _cubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, far).masked_fill_(x >= 2, 0)


def _lanczos(x: Tensor) -> Tensor:
    at_other_pixels = (x > 0) & (x == x.round())  # exactly 0 there, which rounding of the sine would not give
    return (torch.sinc(x) * torch.sinc(x / 3)).masked_fill_(at_other_pixels | (x >= 3), 0)


KERNELS = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}  # Keys' cubic with a = -1/2, as in Pillow


def weights(spans: Tensor, size: int, canvas: int, interpolation: str, device: torch.device) -> Tensor:
    """Resampling matrices (B, size, canvas): each row is the anti-aliased kernel around one output pixel, sum 1."""
    begin, run, low, high = (column.to(device, torch.float32).view(-1, 1, 1) for column in spans.unbind(1))
    step = run / size
    stretch = step.abs().clamp(min=1)  # a kernel as wide as an output pixel when shrinking: no aliasing
    centre = begin + (torch.arange(size, device=device).view(1, -1, 1) + 0.5) * step
    pixel = torch.arange(canvas, device=device).view(1, 1, -1) + 0.5
    pixel = torch.where((pixel > low) & (pixel < high), pixel, torch.inf)  # out of bounds: infinitely far, weight 0
    table = KERNELS[interpolation]((pixel / stretch - centre / stretch).abs_())
    return table.div_(table.sum(2, keepdim=True))


def resample(images: Tensor, rows: Tensor, columns: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """Y X Z' with per-sample matrices: (B, C, H, W) of any type -> (B, C, size, size) float32. Spans are (B, 4)."""
    down = weights(rows, size, images.shape[2], interpolation, images.device)
    across = weights(columns, size, images.shape[3], interpolation, images.device)
    return _both_sides(down, images.float(), across)


def _both_sides(down: Tensor, images: Tensor, across: Tensor) -> Tensor:
    """Y X Z' for every sample and channel: (B, h, H), (B, C, H, W), (B, w, W) -> (B, C, h, w)."""
    batch, channels, height, width = images.shape
    narrow = torch.bmm(images.reshape(batch, channels * height, width), across.transpose(1, 2))
    return torch.matmul(down.unsqueeze(1), narrow.view(batch, channels, height, -1))


def quarter_turn(images: Tensor) -> Tensor:
    """90 degrees counter-clockwise; H = W."""
    return torch.rot90(images, 1, (2, 3))


# --- colour -------------------------------------------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = images.split(1, 1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """f x"""
    return (images * _each(factor, images)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """f x + (1 - f) m, with m the mean luma of the image as it is now."""
    f = _each(factor, images)
    mean = luma(images.mean((2, 3), keepdim=True))
    return (images * f).add_((1 - f) * mean).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """f x + (1 - f) luma(x)"""
    return torch.lerp(luma(images), images, _each(factor, images)).clamp_(0, 1)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """The hue of HSV turned by `shift` turns, value and chroma kept.

    With V = max, m = min, C = V - m and H in turns, the six sextants of the usual definition are two lines:
    |H| = 1/6 + (G + B - R - m) / 6C, signed as G - B, and a channel is V - C clamp(2 - 6 |d|, 0, 1), where d is
    H + shift plus 1/2, 1/6 or -1/6 (red, green, blue), wrapped to [-1/2, 1/2].
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(red, green)
    value = torch.maximum(value, blue, out=value)
    least = torch.minimum(red, green)
    least = torch.minimum(least, blue, out=least)
    chroma = value - least
    turns = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-12)).add_(1).div_(6)  # grey: any hue will do
    turns = turns.copysign_(green - blue)
    offset = torch.tensor([3 / 6, 1 / 6, -1 / 6], device=images.device).view(1, 3, 1, 1)
    away = turns.unsqueeze(1) + (offset + _each(shift, images))
    drop = away.sub_(away.round()).abs_().mul_(-6).add_(2).clamp_(0, 1).mul_(chroma.unsqueeze(1))
    return torch.sub(value.unsqueeze(1), drop, out=drop)


JITTER = (brightness, contrast, saturation, hue)


def draw_jitter(n: int, probability: float, strengths: Sequence[float], generator: Generator) -> tuple[Tensor, Tensor]:
    """Colour jitter: (n, 4) the operation (index into JITTER) of each turn, -1 = left alone; (n, 4) their factors."""
    gate = draw_gate(n, probability, generator)
    order = torch.rand(n, 4, generator=generator, dtype=torch.float64).argsort(1)
    ranges = [(max(0.0, 1 - s), 1 + s) for s in strengths[:3]] + [(-strengths[3], strengths[3])]
    factors = torch.stack([draw_uniform(n, *limits, generator) for limits in ranges], 1)
    for kind, strength in enumerate(strengths):
        if strength == 0:
            order[order == kind] = -1
    return order.masked_fill_(~gate.unsqueeze(1), -1), factors


def colour_jitter(images: Tensor, order: Tensor, factors: Tensor) -> None:
    """In place: the four adjustments in each sample's own order (B, 4), clamped after each; factors (B, 4)."""
    for turn in order.unbind(1):
        for kind, operation in enumerate(JITTER):
            only(images, turn == kind, operation, factors[:, kind])


def grey(images: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(images).expand_as(images)


def solarize(images: Tensor) -> Tensor:
    """1 - x from 128/255 upwards."""
    return torch.where(images >= 128 / 255, 1 - images, images)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Separable Gaussian, sigma (B,) in pixels, 2 reach + 1 taps, reflected at the border: as two matrix products."""
    taps = torch.arange(-reach, reach + 1, device=images.device)
    bell = (taps / _each(sigma, images).view(-1, 1)).square_().mul_(-0.5).exp_()
    bell = torch.where(bell > 1e-9, bell, 0)  # weights too small to see, but subnormal: a hundred times slower on a CPU
    bell = bell / bell.sum(1, keepdim=True)

    def matrix(side: int) -> Tensor:
        last = max(side - 1, 1)
        seen = (torch.arange(side, device=images.device).view(-1, 1) + taps).remainder(2 * last)
        seen = torch.minimum(seen, 2 * last - seen)  # a triangle wave: 0 1 2 .. last .. 2 1 0
        fold = torch.nn.functional.one_hot(seen, last + 1)[..., :side].to(bell.dtype)  # (side, taps, side)
        return torch.einsum("bt,itj->bij", bell, fold)

    return _both_sides(matrix(images.shape[2]), images, matrix(images.shape[3]))


# --- changes of place ---------------------------------------------------------------------------------------------


def draw_patch(n: int, height: int, width: int, generator: Generator) -> Tensor:
    """LoRot-I: (n, 4) int64 side in 2 .. W//2, top and left in 0 .. W-side-1 (as its code has it), turns in 0 .. 3."""
    side = 2 + draw_below(torch.full((n,), min(height, width) // 2 - 1), generator)
    top, left = draw_below(height - side, generator), draw_below(width - side, generator)
    return torch.stack((side, top, left, draw_below(torch.full((n,), 4), generator)), 1)


def before_rotation(y: Tensor, x: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """Where local rotation reads what it shows at y and x, (B, h, w) or (1, h, 1) in pixels from the image's edge."""
    side, top, left, turns = patch.to(y.device).view(-1, 4, 1, 1).unbind(1)
    i, j = y - top, x - left
    inside = (i > 0) & (i < side) & (j > 0) & (j < side)
    for turn in (1, 2, 3):  # one quarter turn reads (i, j) from (j, side - i)
        again = turns >= turn
        i, j = torch.where(again, j, i), torch.where(again, side - i, j)
    return torch.where(inside, top + i, y), torch.where(inside, left + j, x)


def local_rotation(images: Tensor, patch: Tensor) -> Tensor:
    """LoRot-I (arXiv 2207.10023): a square patch is turned counter-clockwise in place. patch (B, 4) as drawn."""
    batch, channels, height, width = images.shape
    y = torch.arange(height, device=images.device).view(1, -1, 1) + 0.5
    x = torch.arange(width, device=images.device).view(1, 1, -1) + 0.5
    row, column = (place.long() for place in before_rotation(y, x, patch))  # from a pixel's centre to its number
    flat = (row * width + column).view(batch, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, flat).view_as(images)


def draw_confusion(n: int, cells: int, generator: Generator) -> Tensor:
    """Region confusion: (n, cells^2) int64, the source cell of each cell of the grid, row by row.

    Every row is scanned from its second cell on, each cell changing places with the one before it by a fair coin; then
    the whole rows are scanned alike (the order of DCL's code, not of its paper).
    """

    def scan(lines: int) -> Tensor:
        order = torch.arange(cells).repeat(n, lines, 1)
        for i in range(1, cells):
            pair = order[..., i - 1 : i + 1]
            swap = draw_gate(n * lines, 0.5, generator).view(n, lines, 1)
            order[..., i - 1 : i + 1] = torch.where(swap, pair.flip(-1), pair)
        return order

    within, rows = scan(cells), scan(1).transpose(1, 2)
    return (rows * cells + within).flatten(1)


def confusion_edges(side: int, cells: int, trim: int) -> Tensor:
    """(cells + 1,) int64: the whole pixels at which cells begin and end, when `trim` pixels of 448 are cut off."""
    cut = trim * side // 448
    return cut + torch.arange(cells + 1) * (side - 2 * cut) // cells


def before_confusion(y: Tensor, x: Tensor, source: Tensor, side: int, trim: int) -> tuple[Tensor, Tensor]:
    """Where region confusion reads what it shows at y and x, (B, h, w) in pixels from the edge of a side x side image.

    source (B, cells^2) as drawn. As the cells are of one side when they move, a place keeps its share of the cell.
    """
    cells = math.isqrt(source.shape[1])
    edges = confusion_edges(side, cells, trim).to(y.device)
    row, column = ((place * cells / side).floor().long().clamp(0, cells - 1) for place in (y, x))
    origin = source.to(y.device).gather(1, (row * cells + column).flatten(1)).view_as(row)

    def read(place: Tensor, shown: Tensor, origin: Tensor) -> Tensor:
        return edges[origin] + (place * cells / side - shown) * edges.diff()[origin]

    return read(y, row, origin // cells), read(x, column, origin % cells)


def region_confusion(images: Tensor, source: Tensor, trim: int = 10) -> Tensor:
    """DCL (CVPR 2019; arXiv 2105.08788): the cells of a grid change places. source (B, cells^2) as drawn.

    A border of `trim` pixels in 448 is cut off, the rest is split at whole pixels into cells that are resized to one
    side, moved, and resized together to the image's size; where the sides divide, nothing but the order changes.
    """
    batch, cells = len(images), math.isqrt(source.shape[1])

    def matrices(side: int) -> tuple[Tensor, Tensor]:
        """Image to mosaic of equal cells, and back."""
        edges = confusion_edges(side, cells, trim)
        cell = int(edges[-1] - edges[0]) // cells
        mosaic = torch.tensor([[0, cells * cell, 0, cells * cell]])
        spans = torch.stack((edges[:-1], edges.diff(), edges[:-1], edges[1:]), 1)
        cut = weights(spans, cell, side, "lanczos", images.device).flatten(0, 1)
        join = weights(mosaic, side, cells * cell, "bicubic", images.device)
        return cut.expand(batch, -1, -1), join.expand(batch, -1, -1)

    (cut_rows, join_rows), (cut_columns, join_columns) = matrices(images.shape[2]), matrices(images.shape[3])
    mosaic = _both_sides(cut_rows, images, cut_columns)
    pieces = mosaic.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = pieces[torch.arange(batch, device=images.device).unsqueeze(1), source.to(images.device)]
    moved = moved.unflatten(1, (cells, cells)).permute(0, 3, 1, 4, 2, 5).reshape(mosaic.shape)
    return _both_sides(join_rows, moved, join_columns).clamp_(0, 1)
