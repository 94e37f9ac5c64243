"""Every objective on every kind of backbone at five sizes: it takes a step, or it is refused before the start with a
setting that works. The outcome is the table in docs/objectives.md; `python tests/contract/test_matrix.py` rewrites it.

The backbones are narrow here (a few channels a head): what they accept depends on their shape, not on their width.
"""

from pathlib import Path

import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, Clock, step_generator
from sandglass.errors import Problem
from sandglass.objectives import OBJECTIVES
from sandglass.objectives._check import check
from sandglass.registry import literals
from sandglass.views import RECIPES
from sandglass.views.recipes import draw_views, located_views, sizes_of

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
SIZES = (32, 64, 96, 160, 224)
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
BACKBONES = {
    "ResNet-18": ("resnet18", {"channels": [8, 16, 32, 64], "stem_type": "deep", "stem_width": 4}),
    "Hourglass": ("hourglass_tiny", {}),
    "ViT": ("vit_tiny_patch16_224", VIT),
    "ViT, elastic": ("vit_tiny_patch16_224", VIT | {"dynamic_img_size": True}),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN),
    "Swin, elastic": ("swin_tiny_patch4_window7_224", SWIN | {"strict_img_size": False}),
    "PVTv2": ("pvt_v2_b0", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "num_heads": [1, 1, 1, 1]}),
    "ConvNeXt": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "Hiera": ("hiera_tiny_224", {"embed_dim": 12, "stages": [1, 1, 1, 1]}),
}
IMAGES = 4


def settled(objective, recipe=None):
    """Its defaults, narrow, and its recipe with the two large views and two small ones at most."""
    settings = resolve(OBJECTIVES, objective, {})
    settings |= {key: 16 for key, value in settings.items() if type(value) is int and value > 16}
    recipe = recipe or literals(OBJECTIVES.rows[objective].partition(":")[0])["VIEWS"]
    views = resolve(RECIPES, recipe, {})
    return settings, recipe, views | ({"small_count": 2} if views.get("small_count") else {})


def outcome(objective, backbone, size, recipe=None):
    """None after a step, or what refuses it."""
    name, arguments = BACKBONES[backbone]
    settings, recipe, views = settled(objective, recipe)
    try:
        check(objective, settings, sizes_of(views, size), name, size, arguments)
    except Problem as problem:
        return problem
    torch.manual_seed(0)
    kind = OBJECTIVES.get(objective)
    encoder = build(name, size, 2 if kind.needs_labels else 0, [0.5] * 3, [0.25] * 3, arguments).train()
    learned = kind(encoder, settings, 2)
    images = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8)
    sizes = torch.full((IMAGES, 2), size)
    drawn = draw_views(recipe, views, sizes, size, step_generator(0, 0, 0, "views"))
    made, places = located_views(drawn, images)
    labels, index = torch.arange(IMAGES) % 2, torch.arange(IMAGES)
    batch = Batch(made, labels, index, step_generator(0, 0, 0, "loss"), clock=Clock(50, 100, 10), places=places)
    loss = learned.loss(encoder, learned.features(encoder, batch), batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss), (objective, backbone, size)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters()), (objective, backbone, size)
    return None


def written(outcomes):
    """The table: a row for each objective, a column for each kind of backbone, in a cell the sizes that run."""
    notes: dict[str, int] = {}
    lines = ["| objective | " + " | ".join(BACKBONES) + " |", "|---" * (len(BACKBONES) + 1) + "|"]
    for objective in OBJECTIVES:
        cells = []
        for backbone in BACKBONES:
            found = {size: outcomes[objective, backbone, size] for size in SIZES}
            running = [str(size) for size, problem in found.items() if problem is None]
            marks = []
            for problem in found.values():
                if problem is not None:
                    text = problem.fix.splitlines()[0]
                    marks.append(f"[{notes.setdefault(text, len(notes) + 1)}]")
            cells.append(
                " ".join(["all" if len(running) == len(SIZES) else ", ".join(running) or "none", *dict.fromkeys(marks)])
            )
        lines.append(f"| `{objective}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. {text}" for text, number in notes.items())])


def named():
    """The table of objectives, from what their files say of themselves."""
    lines = ["| objective | idea | source | views | recipe | backbones |", "|---|---|---|---|---|---|"]
    for name in OBJECTIVES:
        about = OBJECTIVES.about(name)
        idea = about["about"].partition(": ")[2].rstrip(".")
        cells = (f"`{name}`", idea, about["paper"], about["kind"], f"`{about['views']}`", about["backbones"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def on_the_page(mark):
    return PAGE.read_text().partition(f"<!-- {mark} -->\n")[2].partition("<!-- end -->")[0].rstrip("\n")


@pytest.fixture(scope="module")
def outcomes():
    return {(o, b, s): outcome(o, b, s) for o in OBJECTIVES for b in BACKBONES for s in SIZES}


def test_it_runs_or_is_refused_with_a_setting_that_works(outcomes):
    refused = {key: problem for key, problem in outcomes.items() if problem is not None}
    assert 0 < len(refused) < len(outcomes) / 4 and all(problem.fix for problem in refused.values())
    for (objective, backbone, size), problem in refused.items():
        if "_img_size: " in problem.fix and problem.id == "T-164":
            assert outcomes[objective, f"{backbone}, elastic", size] is None, problem.what
        elif "pretrain.views: baseline" in problem.fix:
            assert outcome(objective, backbone, size, "baseline") is None, problem.what


def test_the_page_says_so(outcomes):
    assert on_the_page("matrix") == written(outcomes), "python tests/contract/test_matrix.py rewrites it"
    assert on_the_page("objectives") == named(), "python tests/contract/test_matrix.py rewrites it"


if __name__ == "__main__":
    steps = written({(o, b, s): outcome(o, b, s) for o in OBJECTIVES for b in BACKBONES for s in SIZES})
    text = PAGE.read_text()
    for mark, table in (("objectives", named()), ("matrix", steps)):
        start, _, rest = text.partition(f"<!-- {mark} -->\n")
        text = f"{start}<!-- {mark} -->\n{table}\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    PAGE.write_text(text)
