"""A figure holds what it was given, says what it shows, and lets no name become markup."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from sandglass.report import figures
from sandglass.report.figures import attacked, curves, dots, embedding, epsilons, picture, views

HOSTILE = '<script>alert("x")</script> $\\frac{$'


def line(*values: float) -> figures.Curve:
    return np.arange(len(values), dtype=float), np.array(values)


def charts(name: str) -> dict[str, str]:
    xy, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    under_attack = np.array([0.0, 1, 8]), np.array([[0.9, 0.7, 0.1]])
    return {
        "curves": curves({name: [line(3, 2, 1), line(4, 2, 0)], "other": [line(1, 1, 1)]}, name),
        "dots": dots([(name, name, [0.9, 0.92]), ("other", "b", [0.7])], "accuracy, %", (0.7, 0.92)),
        "epsilons": epsilons({name: under_attack, "other": (np.array([1.0]), np.array([[0.5]]))}),
        "embedding": embedding(xy, labels, [name[:16], "b", "c"]),
    }


def markers(svg: str) -> int:
    return svg.count("<use")


@pytest.mark.parametrize("kind", ["curves", "dots", "epsilons", "embedding"])
def test_a_chart_is_one_self_contained_element(kind: str) -> None:
    svg = charts("none")[kind]
    root = ET.fromstring(svg)
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label")
    assert "http" not in svg and "<style" not in svg and "<metadata" not in svg
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert sorted(ids) == sorted(set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)))
    assert charts("none")[kind] == svg  # to the last byte: an unchanged study makes an unchanged page


@pytest.mark.parametrize("kind", ["curves", "dots", "epsilons", "embedding"])
def test_names_are_text(kind: str) -> None:
    root = ET.fromstring(charts(HOSTILE)[kind])  # not well-formed if a name got through
    assert not {element.tag for element in root.iter()} & {"script", "foreignObject", "a"}
    said = " ".join(root.itertext()) + str(root.get("aria-label"))
    assert HOSTILE[:16] in said


def test_mean_of_curves_is_taken_where_all_seeds_have_been() -> None:
    long, short = (np.array([0.0, 1, 2, 3]), np.array([0.0, 10, 20, 30])), (np.array([1.0, 2.5]), np.array([2.0, 5.0]))
    grid, mean = figures._mean([long, short])
    np.testing.assert_allclose(grid, [1, 2])
    np.testing.assert_allclose(mean, [(10 + 2) / 2, (20 + 4) / 2])


def test_a_long_curve_is_averaged_and_not_sampled() -> None:
    x = np.arange(30_000, dtype=float)
    thin_x, thin_y = figures._thinned(x, x % 2)  # 0, 1, 0, 1: any sampling would show only one of them
    assert len(thin_x) == figures.POINTS and thin_x[0] == 49.5
    np.testing.assert_allclose(thin_y, 0.5)


def test_every_seed_is_a_dot_and_the_mean_is_in_words() -> None:
    three = dots([("a", "a", [0.90, 0.91, 0.95])], "accuracy, %", (0.9, 0.95))
    four = dots([("a", "a", [0.90, 0.91, 0.95, 0.92])], "accuracy, %", (0.9, 0.95))
    assert markers(four) - markers(three) == 1
    assert "92.0 ± 2.6" in three
    assert "91.0" in dots([("a", "a", [0.91])], "accuracy, %", (0.9, 0.95)) and "nan" not in three + four


def test_embedding_leaves_out_the_unlabelled_and_names_at_most_twenty_classes() -> None:
    xy = np.random.default_rng(0).normal(size=(60, 2))
    names = [f"class{k}" for k in range(30)]
    few, many = embedding(xy, np.arange(60) % 3 - 1, names), embedding(xy, np.arange(60) % 30, names)
    assert "class0" in few and "class1" in few and "class2" not in few
    assert "class0" not in many


def pixels(address: str) -> np.ndarray:
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)


def test_a_picture_holds_exactly_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(picture(image)), image)
    np.testing.assert_array_equal(pixels(picture((image / 255).astype(np.float32))), image)


def test_views_stand_below_their_original() -> None:
    original = np.zeros((8, 3, 4, 4), np.uint8)
    columns = views(original, [original + 1, original + 2])
    assert len(columns) == 8
    assert [name for name, _ in columns[3]["pictures"]] == ["original", "view 1", "view 2"]
    assert [int(pixels(address)[0, 0, 0]) for _, address in columns[3]["pictures"]] == [0, 1, 2]


def test_the_change_is_magnified_by_the_stated_factor() -> None:
    clean = np.full((2, 3, 4, 4), 0.5)
    change = np.zeros_like(clean)
    change[0, 0, 0, 0], change[1, 0, 0, 0] = 8 / 255, -4 / 255
    examples = {
        "clean": clean,
        "adversarial": clean + change,
        "labels": np.array([0, 1]),
        "clean_prediction": np.array([0, 1]),
        "adversarial_prediction": np.array([1, 5]),
    }
    columns, factor = attacked(examples, ["cat", "dog"])
    assert factor == 15  # 15 * 8/255 is the last whole multiple within the half range around grey
    grey = [pixels(column["pictures"][1][1])[0] for column in columns]
    assert (grey[0][0, 0], grey[1][0, 0], grey[0][1, 1]) == (248, 68, 128)
    assert [(c["label"], c["before"], c["after"]) for c in columns] == [("cat", "cat", "dog"), ("dog", "dog", "5")]


def test_an_attack_that_changed_nothing_can_still_be_drawn() -> None:
    clean, zero = np.zeros((1, 3, 2, 2), np.uint8), np.array([0])
    same = {"clean": clean, "adversarial": clean}
    same |= {"labels": zero, "clean_prediction": zero, "adversarial_prediction": zero}
    columns, factor = attacked(same, [])
    assert np.isfinite(factor) and columns[0]["label"] == "0"
