"""The figures of the page, one function each, in one style: charts as inline SVG, pictures as PNG data addresses.

A chart is narrow, so that two or three stand side by side on a screen and one fills a phone without its text
becoming small; its text is text, in the page's own font. Colours are those of Okabe and Ito (2008), which readers with
any colour vision tell apart, and for classes those of Paul Tol; groups keep their colour from chart to chart because
they keep their order. Ink, rules and paper are the page's own, whether it is light or dark.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

INK, FAINT, RULE, PAPER = "#1d2733", "#68737f", "#d9dee3", "#ffffff"
THEMED = {  # by style.css, which has what is too dark to be seen on dark paper in a lighter shade too
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    "#0072b2": "var(--blue)",
    "#332288": "var(--indigo)",
    "#117733": "var(--green)",
    "#882255": "var(--wine)",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1d2733", "#8a8f94")
CLASSES = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#999933",
    "#44AA99",
    "#AA4499",
    "#DDAA33",
    "#777777",
)  # Tol, muted
WIDTH = 3.6  # inches, shown at 96 px an inch
POINTS = 300  # a curve is averaged to at most so many
STYLE: dict[Any, Any] = {
    "axes.formatter.useoffset": False,  # 1.00003, not 3 and a power of ten in a corner
    "svg.fonttype": "none",
    "svg.hashsalt": "sandglass",
    "text.parse_math": False,  # a name is a name, whatever it contains
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

HALO = {"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none"}  # lifts text off the grid

Curve = tuple[np.ndarray, np.ndarray]  # x, y


def curves(groups: dict[str, list[Curve]], metric: str) -> str:
    """A metric by epoch: each seed a thin line, the mean over seeds a bold one, a colour per group."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.4, len(groups))
        for name, colour, kind in _styled(groups):
            thinned = [_thinned(x, y) for x, y in groups[name] if len(x)]
            for x, y in thinned:
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
            if thinned:
                x, mean = _mean(thinned)
                axes.plot(x, mean, kind, color=colour, linewidth=1.8, label=name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.01)
        _legend(axes)
        return _svg(figure, f"{metric} by epoch: {', '.join(groups)}")


def dots(rows: Sequence[tuple[str, str, Sequence[float]]], xlabel: str, span: tuple[float, float]) -> str:
    """One line per (label, group, values): every seed a dot, their mean a bar, and the numbers in words at the end.

    Values are fractions and shown in percent, on an axis that holds `span`. Lines of a group share a colour.
    """
    order = list(dict.fromkeys(group for _, group, _ in rows))
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(0.5 + 0.46 * len(rows))
        for y, (label, group, values) in enumerate(rows):
            colour, percent = COLOURS[order.index(group) % len(COLOURS)], 100 * np.asarray(values, float)
            axes.axhline(y, color=RULE, linewidth=0.6, zorder=0)
            axes.plot(percent, np.full(len(percent), y), "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
            axes.plot([percent.mean()] * 2, [y - 0.17, y + 0.17], color=colour, linewidth=2.2)
            spread = f" ± {percent.std(ddof=1):.1f}" if len(percent) > 1 else ""
            place: Any = {
                "xycoords": ("axes fraction", "data"),
                "textcoords": "offset points",
                "va": "bottom",
                "bbox": HALO,
            }
            axes.annotate(label, (0, y), (0, 7), ha="left", **place)
            axes.annotate(f"{percent.mean():.1f}{spread}", (1, y), (0, 7), ha="right", **place)
        axes.set(xlabel=xlabel, ylim=(len(rows) - 0.7, -0.7), yticks=[])
        axes.spines["left"].set_visible(False)
        margin = 0.08 * (span[1] - span[0]) + 0.005
        axes.set_xlim(100 * (span[0] - margin), 100 * (span[1] + margin))
        axes.grid(axis="y", visible=False)
        return _svg(
            figure, f"{xlabel}: " + "; ".join(f"{label} {100 * np.mean(values):.1f}" for label, _, values in rows)
        )


def bars(rows: Sequence[tuple[str, str, float]], xlabel: str) -> str:
    """One bar per (label, group, value >= 0), its label and value above it. Bars of a group share a colour."""
    order = list(dict.fromkeys(group for _, group, _ in rows))
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(0.5 + 0.32 * len(rows))
        for y, (label, group, value) in enumerate(rows):
            axes.barh(y, value, 0.36, color=COLOURS[order.index(group) % len(COLOURS)])
            place: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "bottom"}
            axes.annotate(label, (0, y), (0, 5), ha="left", **place)
            axes.annotate(f"{value:.3g}" if value < 100 else f"{value:,.0f}", (1, y), (0, 5), ha="right", **place)
        axes.set(xlabel=xlabel, ylim=(len(rows) - 0.6, -0.9), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        return _svg(figure, f"{xlabel}: " + "; ".join(f"{label} {value:.3g}" for label, _, value in rows))


def growth(lines: dict[str, tuple[np.ndarray, np.ndarray]], xlabel: str) -> str:
    """Cost by size, both as multiples of the smallest, on logarithmic axes; grey: a cost that grows as its cause."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.4, len(lines))
        sizes = sorted({float(x) for xs, _ in lines.values() for x in xs})
        axes.plot(sizes, sizes, color=RULE, linewidth=3, zorder=0)
        for name, colour, kind in _styled(lines):
            axes.plot(*lines[name], kind, marker="o", color=colour, markersize=4, linewidth=1.4, label=name)
        axes.set(xscale="log", yscale="log", xlabel=xlabel, xticks=sizes, yticks=sizes)
        axes.set(xticklabels=[f"{size:g}" for size in sizes], yticklabels=[f"{size:g}" for size in sizes])
        axes.minorticks_off()
        _legend(axes)
        return _svg(figure, f"cost by {xlabel}")


def epsilons(groups: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Accuracy by strength of attack: (epsilons (E,) in 1/255, values (seeds, E)); mean, band of one deviation."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.5, len(groups))
        ticks = sorted({float(e) for epsilon, _ in groups.values() for e in epsilon})
        for name, colour, kind in _styled(groups):
            epsilon, values = groups[name]
            _banded(axes, epsilon, values, color=colour, linestyle=kind, label=name)
        positive = [tick for tick in ticks if tick > 0]
        axes.set_xscale("symlog", base=2, linthresh=min(positive, default=1.0))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="ε, in 1/255 of the pixel range", ylabel="accuracy, %", ylim=(0, 100))
        _legend(axes)
        return _svg(figure, f"accuracy by attack strength: {', '.join(groups)}")


def shares(groups: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Accuracy by share of the labels: (shares (F,) ascending, values (seeds, F)); mean, band of one deviation."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.5, len(groups))
        for name, colour, kind in _styled(groups):
            _banded(axes, *groups[name], color=colour, linestyle=kind, label=name)
        ticks = sorted({float(share) for some, _ in groups.values() for share in some})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{100 * tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="share of the labels, %", ylabel="test accuracy, %")
        _legend(axes)
        return _svg(figure, f"accuracy by share of the labels: {', '.join(groups)}")


def confusion(told: np.ndarray, classes: Sequence[str]) -> str:
    """told (C, C): of the images of the class of a row, the share that was taken for the class of a column."""
    count = len(told)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(WIDTH if max(map(len, classes)) > 3 else WIDTH - 0.5)
        for row, column in zip(*np.nonzero(told)):
            share = float(told[row, column])
            colour = COLOURS[0] if row == column else COLOURS[1]
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, alpha=share, linewidth=0))
            if share >= 0.005:
                ink = "#fefefe" if share > 0.6 else INK  # on a blue that is no theme's
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        names = [name[:16] for name in classes]
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set(xlabel="taken for", ylabel="is")
        hits = ", ".join(f"{name} {100 * told[k, k]:.0f}" for k, name in enumerate(names))
        return _svg(figure, f"confusion of {count} classes; right, in %: {hits}")


def embedding(xy: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> str:
    """Features of (N,) images in two dimensions, coloured by class; each class is named where its middle is."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.1)
        present = [int(label) for label in np.unique(labels) if label >= 0]
        for label, colour in zip(present, itertools.cycle(CLASSES)):
            x, y = xy[labels == label].T
            axes.scatter(x, y, s=9, color=colour, alpha=0.65, linewidths=0)
        if len(present) <= 20:
            for label, colour in zip(present, itertools.cycle(CLASSES)):
                name = classes[label] if label < len(classes) else str(label)
                x, y = np.median(xy[labels == label], axis=0)
                box = {"boxstyle": "round,pad=0.2", "facecolor": PAPER, "edgecolor": colour, "alpha": 0.85}
                axes.text(x, y, name[:16], ha="center", va="center", fontsize=8.5, fontweight="bold", bbox=box)
        axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
        axes.grid(visible=False)
        return _svg(figure, f"map of {len(xy)} images by class")


def views(original: np.ndarray, made: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Images (K,3,S,S) and their views -> K columns of pictures, original first."""
    names = ["original", *(f"view {v + 1}" for v in range(len(made)))]
    stacks = [original, *made]
    return [
        {"pictures": [(name, picture(stack[k])) for name, stack in zip(names, stacks)]} for k in range(len(original))
    ]


def attacked(examples: dict[str, np.ndarray], classes: Sequence[str]) -> tuple[list[dict[str, Any]], float]:
    """Examples of an attack -> a column of pictures each (clean, perturbation, adversarial) and the factor by which
    the perturbation is magnified: the largest one spans the range, around grey."""
    clean, adversarial = (_unit(examples[key]) for key in ("clean", "adversarial"))
    change = adversarial - clean
    factor = float(np.floor(0.5 / max(np.abs(change).max(), 1 / 510)))
    grey = np.clip(0.5 + factor * change, 0, 1)

    def name(key: str, k: int) -> str:
        label = int(examples[key][k])
        return classes[label] if 0 <= label < len(classes) else str(label)

    columns = [
        {
            "pictures": [
                ("clean", picture(clean[k])),
                (f"change × {factor:g}", picture(grey[k])),
                ("attacked", picture(adversarial[k])),
            ],
            "label": name("labels", k) + (f" ({examples['names'][k]})" if "names" in examples else ""),
            "before": name("clean_prediction", k),
            "after": name("adversarial_prediction", k),
        }
        for k in range(len(clean))
    ]
    return columns, factor


def picture(image: np.ndarray) -> str:
    """(3,H,W), uint8 or in [0,1] -> the address of a PNG that holds exactly these pixels."""
    file = io.BytesIO()
    pixels = np.round(_unit(image) * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ------------------------------------------------------------------------------------------ parts


def _axes(height: float, groups: int = 1) -> tuple[Figure, Axes]:
    """Axes of one height, whatever the legend above them takes."""
    rows = math.ceil(groups / 2) if groups > 1 else 0
    figure = Figure(figsize=(WIDTH, height + 0.19 * rows))
    return figure, figure.add_subplot()


def _banded(axes: Axes, x: np.ndarray, values: np.ndarray, color: str, **line: Any) -> None:
    """The mean of values (seeds, X), fractions shown in percent, in a band of one deviation."""
    percent = 100 * values
    mean = percent.mean(axis=0)
    if len(values) > 1:
        reach = percent.std(axis=0, ddof=1)
        axes.fill_between(x, mean - reach, mean + reach, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, mean, marker="o", color=color, markersize=3.5, linewidth=1.6, **line)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing; none for a single group."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, columnspacing=1.2)


def _styled(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Name, colour and line of each group: solid lines first, then the same colours dashed, dotted, dash-dotted."""
    kinds = itertools.cycle(itertools.product(("-", "--", ":", "-."), COLOURS))
    for name, (kind, colour) in zip(names, kinds):
        yield name, colour, kind


def _thinned(x: np.ndarray, y: np.ndarray) -> Curve:
    """Averages over equal stretches, so that a long run draws as fast as a short one."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _mean(seeds: list[Curve]) -> Curve:
    """The mean over seeds where all of them have been, on the steps of the first."""
    low, high = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
    first = seeds[0][0]
    grid = first[(first >= low) & (first <= high)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in seeds], axis=0)


def _unit(image: np.ndarray) -> np.ndarray:
    return image / 255 if image.dtype == np.uint8 else np.clip(image.astype(np.float64), 0, 1)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element that fits into a page: no prologue, no metadata, no ids that nothing points at."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</defs>\s*", "", text, count=1, flags=re.DOTALL)
    wanted = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in wanted else "", text)
    for colour, theme in THEMED.items():
        text = text.replace(f": {colour}", f": {theme}")
    width, height = (round(float(inches) * 96) for inches in figure.get_size_inches())
    box = re.findall(r'viewBox="[^"]*"', text)[0]
    opening = f'<svg width="{width}" height="{height}" {box} role="img" aria-label="{html.escape(title)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text.replace("xlink:href", "href"), count=1)
