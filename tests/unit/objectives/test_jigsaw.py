"""Jigsaw: far permutations, tiles cut and standardised as said, and a loss that knows which order it made."""

import hashlib
import math

import numpy as np
import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem
from sandglass.objectives.jigsaw import Jigsaw, cut, far_permutations, standardised

SETTINGS = {"permutations": 12, "out": 8, "hidden": 16, "grey": 0.3}


def batch_of(view, rank=0, processes=1):
    n = len(view)
    return Batch([view], torch.zeros(n).long(), torch.arange(n), step_generator(0, 0, 0, "loss"), rank, processes)


def made(name="toy", size=32, settings=SETTINGS, **arguments):
    torch.manual_seed(0)
    encoder = build(name, size, 0, [0.5] * 3, [0.25] * 3, arguments)
    return encoder, Jigsaw(encoder, settings, 0)


def distances(table):
    return (table[:, None] != table[None]).sum(2)[np.triu_indices(len(table), 1)]


def test_permutations_are_far_from_each_other():
    table = far_permutations(100)
    assert (np.sort(table, 1) == np.arange(9)).all()
    assert (distances(table[:9]) == 9).all()  # as far as can be: a Latin square
    assert distances(table).min() == 6
    assert abs(distances(table).mean() - 8.08) < 0.01  # of random ones: 8


def test_every_permutation_is_the_farthest_that_was_left():
    table, some = far_permutations(40), np.random.default_rng(0)
    for at in range(1, len(table)):
        before = table[:at]

        def score(permutation, before=before):
            places = (before != permutation).sum(1)
            return places.min(), places.sum()

        assert all(score(some.permutation(9)) <= score(table[at]) for _ in range(200))


def test_the_table_is_the_same_everywhere_and_the_start_of_a_longer_one():
    digest = hashlib.sha256(far_permutations(100).astype("int8").tobytes()).hexdigest()
    assert digest.startswith("f106418522bdb91c")
    assert (far_permutations(100)[:16] == far_permutations(16)).all()


def test_tiles_are_cut_from_their_cells():
    images = torch.rand(4, 3, 32, 32)
    shift = torch.randint(3, (4, 9, 2), generator=torch.Generator().manual_seed(0))
    tiles = cut(images, shift, 8)
    for b in range(4):
        for cell in range(9):
            top = (0, 10, 21)[cell // 3] + int(shift[b, cell, 0])
            left = (0, 10, 21)[cell % 3] + int(shift[b, cell, 1])
            assert torch.equal(tiles[b, cell], images[b, :, top : top + 8, left : left + 8])


def test_every_tile_is_standardised_for_the_network_and_a_flat_one_is_zero():
    encoder, objective = made()
    seen = []
    encoder.model.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    view = torch.rand(6, 3, 32, 32)
    view[0] = 0.7
    objective.features(encoder, batch_of(view))
    (tiles,) = seen
    assert tiles.shape == (54, 3, 8, 8) and float(tiles[:9].abs().max()) < 1e-4
    assert float(tiles.mean((2, 3)).abs().max()) < 1e-4
    assert torch.allclose(tiles[9:].std((2, 3)), torch.ones(45, 3), atol=1e-4)
    raw = torch.rand(2, 3, 8, 8)
    assert torch.allclose(standardised(0.3 * raw + 0.1), standardised(raw), atol=1e-4)  # colour casts tell nothing


def test_the_answer_says_where_each_tile_came_from():
    _, objective = made()
    view = torch.empty(8, 3, 32, 32)
    for cell in range(9):
        rows, columns = (slice((0, 10, 21)[i], (10, 21, 32)[i]) for i in divmod(cell, 3))
        view[:, :, rows, columns] = cell / 10
    tiles = objective.puzzle(batch_of(view))
    shown = (10 * tiles.mean((2, 3, 4))).round().long()
    assert len(objective.answer.unique()) > 1
    for b, answer in enumerate(objective.answer):
        assert shown[b].tolist() == far_permutations(12)[answer].tolist()


def test_some_images_lose_their_colour():
    _, objective = made(settings=SETTINGS | {"grey": 0.5})
    tiles = objective.puzzle(batch_of(torch.rand(400, 3, 32, 32)))
    grey = (tiles[:, :, 0] == tiles[:, :, 1]).flatten(1).all(1).float().mean()
    assert abs(float(grey) - 0.5) < 5 * 0.5 / 400**0.5


def test_loss_is_the_cross_entropy_of_the_concatenated_tiles():
    encoder, objective = made()
    encoder.double().eval()
    objective.double().eval()
    batch = batch_of(torch.rand(3, 3, 32, 32, dtype=torch.float64))
    features = objective.features(encoder, batch)
    out = objective.loss(encoder, features, batch)
    linear, norm, _ = objective.tile_head
    first, _, last = objective.classifier
    total = 0.0
    for b in range(3):
        row = []
        for place in range(9):
            z = linear.weight @ features[0].pooled[9 * b + place] / (1 + norm.eps) ** 0.5  # fresh running statistics
            row.append(z.clamp_min(0))
        scores = last.weight @ (first.weight @ torch.cat(row) + first.bias).clamp_min(0) + last.bias
        total -= math.log(scores[objective.answer[b]].exp() / scores.exp().sum())
    assert abs(float(out["loss"]) - total / 3) < 1e-12


def test_a_classifier_that_knows_nothing_has_ln_p():
    encoder, objective = made()
    torch.nn.init.zeros_(objective.classifier[-1].weight)
    torch.nn.init.zeros_(objective.classifier[-1].bias)
    batch = batch_of(torch.rand(4, 3, 32, 32))
    assert abs(float(objective.loss(encoder, objective.features(encoder, batch), batch)["loss"]) - math.log(12)) < 1e-6


def test_processes_that_share_a_batch_make_the_puzzles_of_one():
    _, objective = made()
    view = torch.rand(8, 3, 32, 32)
    whole = objective.puzzle(batch_of(view))
    parts = [objective.puzzle(batch_of(view[4 * rank : 4 * rank + 4], rank, 2)) for rank in range(2)]
    assert torch.equal(whole, torch.cat(parts))


def test_everything_learns_and_a_constant_encoder_is_noticed():
    encoder, objective = made()
    batch = batch_of(torch.rand(8, 3, 32, 32))
    objective.loss(encoder, objective.features(encoder, batch), batch)["loss"].backward()
    assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()])
    assert objective.spread() > 10 * objective.alarm
    with torch.no_grad():
        encoder.model.stages[-1][1].weight.zero_()
        encoder.model.stages[-1][1].bias.fill_(1.0)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() < objective.alarm


@pytest.mark.parametrize(
    ("name", "size", "arguments", "side"),
    [
        ("toy", 32, {}, 8),
        ("toy", 224, {}, 64),
        ("hourglass_tiny", 32, {}, 8),
        ("resnet_toy", 96, {}, 24),
        ("resnet18", 96, {}, 28),  # no multiple of 32 has room
        ("vit_tiny_flat", 96, {"patch_size": 12, "dynamic_img_size": True}, 24),
    ],
)
def test_a_tile_is_the_largest_that_the_encoder_takes(name, size, arguments, side):
    encoder, objective = made(name, size, **arguments)
    assert objective.side == side <= Jigsaw.inputs(SETTINGS, [size])[0]
    assert objective.features(encoder, batch_of(torch.rand(2, 3, size, size)))[0].pooled.shape == (18, encoder.width)


def test_an_encoder_of_one_size_is_refused():
    with pytest.raises(Problem) as caught:
        made("vit_tiny_flat")
    assert caught.value.id == "T-162" and "dynamic_img_size: true" in caught.value.fix
    with pytest.raises(Problem) as caught:
        made("vit_tiny_flat", patch_size=16, dynamic_img_size=True)
    assert "64 px or more" in caught.value.fix
    assert made("vit_tiny_flat", 64, patch_size=16, dynamic_img_size=True)[1].side == 16
