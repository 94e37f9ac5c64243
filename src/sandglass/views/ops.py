"""Image operations on a batch in which every sample has its own parameters.

Drawing is apart from applying. A `draw_*` function turns numbers u (..., k), uniform in [0, 1), into parameters (...,
m); an operation takes float images (B, C, H, W) in [0, 1] together with such parameters of each, on their device, is
deterministic, and returns new images of that range (or, with a name that ends in _, changes them). `only` applies an
operation to the samples whose gate is on and leaves the others untouched. The definitions are torchvision's (Pillow's,
but for its rounding to 8 bits), so one image treated alone gives the same pixels; no pixel outside an image's true size
is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue in luma, as torchvision rounds them


def numbers(start: int, addresses: Tensor, k: int) -> Tensor:
    """(..., k) float32, uniform in [0, 1): the k after each address in the sequence of SplitMix64 from `start` on.

    That generator (Steele, Lea and Flood, OOPSLA 2014) is a function of the place in its sequence: any number can be
    had without those before it, in any order, and, as whole numbers are exact, on any device alike.
    """
    z = addresses.unsqueeze(-1) + torch.arange(1, k + 1, device=addresses.device)
    z.mul_(0x9E3779B97F4A7C15 - 2**64).add_(start)  # int64 wraps as the uint64 of the definition does
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor - 2**64)
    return (z >> 40).bitwise_and_(2**24 - 1).float().mul_(2**-24)  # its last step does not reach these bits


def draw_uniform(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """U[low, high)."""
    return low + (high - low) * u


def draw_below(u: Tensor, limit: float | Tensor) -> Tensor:
    """Whole numbers, uniform over 0 .. limit-1."""
    return (u * limit).floor()


STATIC = False  # apply everything to all samples on a CPU too: for tests


def only(images: Tensor, gate: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """In place: images[gate] = operation(images[gate], parameters[gate]).

    On a CPU work costs, so the others are left out. On a GPU launches cost, and a captured graph has fixed shapes: all
    are worked on, and what is not wanted is dropped.
    """
    if images.device.type != "cpu" or STATIC:
        there = gate.to(images.device, non_blocking=True)
        images.copy_(torch.where(there.view(-1, 1, 1, 1), operation(images, *parameters), images))
    elif len(chosen := gate.nonzero().squeeze(1)):
        values = (parameter.index_select(0, chosen) for parameter in parameters)
        images.index_copy_(0, chosen, operation(images.index_select(0, chosen), *values))


def _each(values: Tensor, images: Tensor) -> Tensor:
    """(B,) parameters beside (B, C, H, W) images: same device and type, (B, 1, 1, 1)."""
    return values.to(images.device, images.dtype).view(-1, 1, 1, 1)


# --- resampling: crop, flip and resize at once --------------------------------------------------------------------


def draw_crop(u: Tensor, sizes: Tensor, scale: tuple[float, float]) -> Tensor:
    """Random resized crop (Inception, arXiv 1409.4842): u (..., 22), sizes (..., 2) -> (..., 4) top, left and sides.

    Ten proposals from the image's true size: area A = U(scale) H W, ratio r = exp U(ln 3/4, ln 4/3), sides sqrt(A r)
    and sqrt(A / r) rounded; the first that fits is taken, else the largest central crop with a ratio in 3/4 .. 4/3.
    """
    height, width = sizes.float().split(1, -1)
    narrow, wide = 3 / 4, 4 / 3
    area, ratio, place = u.split((10, 10, 2), -1)
    area = draw_uniform(area, *scale) * (height * width)
    ratio = draw_uniform(ratio, math.log(narrow), math.log(wide)).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(-1, keepdim=True)  # argmax names the first of equals
    found = fits.any(-1, keepdim=True)
    h = torch.where(found, h.gather(-1, first), torch.minimum(height, (width / narrow).round()))
    w = torch.where(found, w.gather(-1, first), torch.minimum(width, (height * wide).round()))
    slack = torch.cat((height - h, width - w), -1)
    corner = torch.where(found, draw_below(place, slack + 1), (slack / 2).floor())
    return torch.cat((corner, h, w), -1)


def largest_crop(sizes: Tensor, scale_max: float) -> float:
    """The longest side in px that a crop of images of these sizes (n, 2) can have; by its area, if all of that fit."""
    height, width = sizes.double().unbind(-1)
    bound = (scale_max * 4 / 3 * height * width).sqrt().round()
    return float(torch.where(bound <= sizes.amin(-1), bound, sizes.amax(-1)).max())


def crop_spans(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of a crop, (..., 4) float32 each: begin and run of the output, low and high of reading."""
    top, left, height, width = boxes.float().unbind(-1)
    return torch.stack((top, height, top, top + height), -1), torch.stack((left, width, left, left + width), -1)


def centre_spans(sizes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, (..., 4) each: the shorter side resized to `size`, then the centre `size` x `size` pixels."""
    shorter = sizes.amin(-1)

    def axis(side: Tensor) -> Tensor:
        resized = side * size // shorter
        scale = side.double() / resized
        margin = ((resized - size) / 2).round()
        return torch.stack((margin * scale, size * scale, torch.zeros_like(scale), side.double()), -1).float()

    return axis(sizes[..., 0]), axis(sizes[..., 1])


def mirror(spans: Tensor, gate: Tensor) -> Tensor:
    """The same span read backwards where the gate (...) is on: a flip that costs nothing."""
    begin, run, low, high = spans.unbind(-1)
    backwards = torch.stack((begin + run, -run, low, high), -1)
    return torch.where(gate.unsqueeze(-1), backwards, spans)


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


def window(images: Tensor, rows: Tensor, columns: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the spans read, at most `side` x `side` pixels, cut out: (B, C, side, side), and the spans in it."""

    def axis(spans: Tensor, length: int) -> tuple[Tensor, Tensor]:
        first = spans[:, 2:3].clamp(max=length - side)
        moved = torch.cat((first, torch.zeros_like(first), first, first), 1)
        return first.long() + torch.arange(side, device=images.device), spans - moved

    (y, rows), (x, columns) = axis(rows, images.shape[2]), axis(columns, images.shape[3])
    places = (y.unsqueeze(2) * images.shape[3] + x.unsqueeze(1)).flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, places).unflatten(2, (side, side)), rows, columns


def enlarge(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """What bilinear `resample` gives where no span is longer than `size`: its kernel then covers two pixels, and to
    read them by their place is several times faster than matrix products."""

    def axis(spans: Tensor, side: int) -> Tensor:
        begin, run, low, high = spans.to(images.device).split(1, 1)
        centre = begin + (torch.arange(size, device=images.device) + 0.5) * (run / size)
        inside = 0.5 + side * 2**-22  # by more than what rounding can move: the next pixel out is not read
        return torch.minimum(torch.maximum(centre, low + inside), high - inside) * (2 / side) - 1

    y, x = axis(rows, images.shape[2]), axis(columns, images.shape[3])
    grid = torch.stack((x.unsqueeze(1).expand(-1, size, -1), y.unsqueeze(2).expand(-1, -1, size)), 3)
    return torch.nn.functional.grid_sample(images.float(), grid, align_corners=False)


def quarter_turn(images: Tensor) -> Tensor:
    """90 degrees counter-clockwise; H = W."""
    return torch.rot90(images, 1, (2, 3))


# --- colour -------------------------------------------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = images.split(1, 1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def blend_(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """In place: f x + (1 - f) y, with y by each sample's kind (B,): black, the mean luma of the image now, its luma."""
    towards = luma(images)
    flat = towards.mean(3, keepdim=True).mean(2, keepdim=True)  # in one go, threads would share the sum of a lone image
    flat.mul_(_each(kind == CONTRAST, images))
    towards = torch.lerp(flat, towards, _each(kind == SATURATION, images))
    return torch.lerp(towards, images, _each(factor, images), out=images).clamp_(0, 1)


def hue_(images: Tensor, shift: Tensor) -> Tensor:
    """In place: the hue of HSV turned by `shift` turns, value and chroma kept.

    With V = max, m = min, C = V - m and H in sixths of a turn, the six sextants of the usual definition are two lines:
    |H| = 1 + (G + B - R - m) / C, signed as G - B, and a channel is V - C clamp(||t| - 3| - 1, 0, 1), where t is H plus
    the shift and 3, 1 or -1 (red, green, blue), the latter two wrapped to [-3, 3].
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(red, green)
    value = torch.maximum(value, blue, out=value)
    least = torch.minimum(red, green)
    least = torch.minimum(least, blue, out=least)
    chroma = value - least
    sixths = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-12)).add_(1)  # grey: any hue will do
    sixths = sixths.copysign_(green - blue)
    offset = torch.arange(3, -2, -2, device=images.device).view(1, 3, 1, 1) + 6 * _each(shift, images)
    away = torch.add(sixths.unsqueeze(1), offset - 6 * (offset / 6).round(), out=images)
    away.abs_().sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul(value.add_(chroma).unsqueeze(1), away, chroma.unsqueeze(1), value=-1, out=images)


def draw_jitter(u: Tensor, probability: float, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Colour jitter: u (..., 9) -> (..., 4) the operation of each turn, from brightness to hue, -1 where the sample is
    left alone; (..., 4) the factor of each operation."""
    order = u[..., 1:5].argsort(-1).masked_fill_(u[..., :1] >= probability, -1)
    around = torch.tensor([1.0, 1.0, 1.0, 0.0], device=u.device)
    width = torch.tensor(strengths, device=u.device, dtype=u.dtype)
    lowest = torch.tensor([0.0, 0.0, 0.0, -1.0], device=u.device)
    return order.to(torch.int8), draw_uniform(u[..., 5:], torch.maximum(around - width, lowest), around + width)


def colour_jitter(images: Tensor, order: Tensor, factors: Tensor) -> None:
    """In place: the four adjustments in each sample's own order (B, 4), clamped after each; factors (B, 4).

    Three blends at most come before the hue and three after it: so the hue, which costs most, is turned once.
    """
    at = torch.where(order[:, 0] < 0, 4, (order == HUE).int().argmax(1))  # the turn of the hue; 4: left alone
    x, later, sooner = images, [0] * 4, [len(images)] * 4
    if worked_on := images.device.type == "cpu" and not STATIC:  # sorted by that turn, to leave out who has none to do
        by_turn = at.argsort()
        *later, n = sooner = torch.searchsorted(at[by_turn], torch.arange(5)).tolist()
        chosen = by_turn[:n]
        at, order, factors, x = (values.index_select(0, chosen) for values in (at, order, factors, images))
    kinds = order.long().clamp(min=0)
    factor = factors.gather(1, kinds)

    def blend(turn: int, wanted: Tensor, part: slice) -> None:
        blend_(x[part], kinds[part, turn], torch.where(wanted, factor[:, turn], 1)[part])

    for turn in range(3):
        blend(turn, (turn < at) & (at < 4), slice(later[turn + 1], None))
    hue_(x, torch.where(at < 4, factors[:, HUE], 0))
    for turn in range(1, 4):
        blend(turn, at < turn, slice(sooner[turn]))
    if worked_on:
        images.index_copy_(0, chosen, x)


def grey(images: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(images).expand_as(images)


def solarize(images: Tensor) -> Tensor:
    """1 - x from 128/255 upwards."""
    return torch.where(images >= 128 / 255, 1 - images, images)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Separable Gaussian, sigma (B,) in pixels, 2 reach + 1 taps, reflected at the border (in which no more can be seen
    than there is): every channel of every sample is convolved with a kernel of its own."""
    reach = min(reach, images.shape[2] - 1, images.shape[3] - 1)
    taps = torch.arange(-reach, reach + 1, device=images.device)
    bell = (taps / _each(sigma, images).view(-1, 1)).square_().mul_(-0.5).exp_()
    bell = torch.where(bell > 1e-9, bell, 0)  # weights too small to see, but subnormal: a hundred times slower on a CPU
    bell = (bell / bell.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    x = torch.nn.functional.pad(images, (reach,) * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    x = torch.nn.functional.conv2d(x, bell.view(len(bell), 1, 1, -1), groups=len(bell))
    x = torch.nn.functional.conv2d(x, bell.view(len(bell), 1, -1, 1), groups=len(bell))
    return x.view(images.shape).clamp_(max=1)  # where rounding has the weights add up to a little more


# --- changes of place ---------------------------------------------------------------------------------------------


def draw_patch(u: Tensor, height: int, width: int) -> Tensor:
    """LoRot-I: u (..., 4) -> side in 2 .. W//2, top and left in 0 .. W-side-1 (as its code has it), turns in 0 .. 3."""
    side = 2 + draw_below(u[..., 0], min(height, width) // 2 - 1)
    top, left = draw_below(u[..., 1], height - side), draw_below(u[..., 2], width - side)
    return torch.stack((side, top, left, draw_below(u[..., 3], 4)), -1).short()


def before_rotation(y: Tensor, x: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """Where local rotation reads what it shows at y and x, (B, h, w) or (1, h, 1) in pixels from the image's edge."""
    side, top, left, turns = patch.view(-1, 4, 1, 1).unbind(1)
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


def draw_confusion(u: Tensor, cells: int) -> Tensor:
    """Region confusion: u (..., cells^2 - 1 at least) -> (..., cells^2), the source cell of each cell of the grid, row
    by row, uint8.

    Every row is scanned from its second cell on, each cell changing places with the one before it by a fair coin; then
    the whole rows are scanned alike (the order of DCL's code, not of its paper).
    """

    def scan(coins: Tensor) -> Tensor:
        order = torch.arange(cells, device=u.device).repeat(*coins.shape[:-1], 1)
        for i in range(1, cells):
            pair = order[..., i - 1 : i + 1]
            order[..., i - 1 : i + 1] = torch.where(coins[..., i - 1 : i] < 0.5, pair.flip(-1), pair)
        return order

    coins = u[..., : cells**2 - 1].unflatten(-1, (cells + 1, cells - 1))
    within, rows = scan(coins[..., :cells, :]), scan(coins[..., cells, :])
    return (rows.unsqueeze(-1) * cells + within).flatten(-2).byte()


def confusion_edges(side: int, cells: int, trim: int, device: torch.device) -> Tensor:
    """(cells + 1,) int64: the whole pixels at which cells begin and end, when `trim` pixels of 448 are cut off."""
    cut = trim * side // 448
    return cut + torch.arange(cells + 1, device=device) * (side - 2 * cut) // cells


def before_confusion(y: Tensor, x: Tensor, source: Tensor, side: int, trim: int) -> tuple[Tensor, Tensor]:
    """Where region confusion reads what it shows at y and x, (B, h, w) in pixels from the edge of a side x side image.

    source (B, cells^2) as drawn. As the cells are of one side when they move, a place keeps its share of the cell.
    """
    cells = math.isqrt(source.shape[1])
    edges = confusion_edges(side, cells, trim, y.device)
    row, column = ((place * cells / side).floor().long().clamp(0, cells - 1) for place in (y, x))
    origin = source.long().gather(1, (row * cells + column).flatten(1)).view_as(row)

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
        edges = confusion_edges(side, cells, trim, images.device)
        cell = (side - 2 * (trim * side // 448)) // cells
        mosaic = torch.arange(2, device=images.device).repeat(1, 2) * cells * cell  # 0, all of it, 0, all of it
        spans = torch.stack((edges[:-1], edges.diff(), edges[:-1], edges[1:]), 1)
        cut = weights(spans, cell, side, "lanczos", images.device).flatten(0, 1)
        join = weights(mosaic, side, cells * cell, "bicubic", images.device)
        return cut.expand(batch, -1, -1), join.expand(batch, -1, -1)

    (cut_rows, join_rows), (cut_columns, join_columns) = matrices(images.shape[2]), matrices(images.shape[3])
    mosaic = _both_sides(cut_rows, images, cut_columns)
    pieces = mosaic.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = pieces[torch.arange(batch, device=images.device).unsqueeze(1), source.long()]
    moved = moved.unflatten(1, (cells, cells)).permute(0, 3, 1, 4, 2, 5).reshape(mosaic.shape)
    return _both_sides(join_rows, moved, join_columns).clamp_(0, 1)
