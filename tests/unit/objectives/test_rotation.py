"""Rotation: every turn of every image, by moving pixels alone, and a plain four-way cross-entropy."""

import math

import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.objectives.rotation import Rotation


@pytest.fixture
def setup():
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3)
    objective = Rotation(encoder, {}, 0)
    batch = Batch([torch.rand(5, 3, 32, 32)], torch.zeros(5).long(), torch.arange(5), step_generator(0, 0, 0, "loss"))
    return encoder, objective, batch


def turned(image):
    """A quarter turn anticlockwise, pixel by pixel: the right column becomes the top row."""
    size = image.shape[-1]
    out = torch.empty_like(image)
    for row in range(size):
        for column in range(size):
            out[:, row, column] = image[:, column, size - 1 - row]
    return out


def test_loss_is_the_mean_over_all_turns_of_all_images(setup):
    encoder, objective, batch = setup
    encoder.double().eval()
    objective.double()
    batch = Batch([batch.views[0].double()], batch.labels, batch.index, batch.generator)
    with torch.no_grad():
        out = objective.loss(encoder, objective.features(encoder, batch), batch)
    losses, right = [], 0
    for image in batch.views[0]:
        for turns in range(4):
            scores = (objective.head.weight @ encoder(image[None]).pooled[0] + objective.head.bias).detach()
            losses.append(-math.log(scores[turns].exp() / scores.exp().sum()))
            right += int(scores.argmax() == turns)
            image = turned(image)
    assert abs(float(out["loss"]) - sum(losses) / len(losses)) < 1e-12
    assert abs(float(out["accuracy"]) - right / len(losses)) < 1e-6


def test_a_head_that_knows_nothing_has_ln_4_and_is_right_once_in_four(setup):
    encoder, objective, batch = setup
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    out = objective.loss(encoder, objective.features(encoder, batch), batch)
    assert abs(float(out["loss"]) - math.log(4)) < 1e-6 and float(out["accuracy"]) == 0.25


def test_a_lit_corner_is_told_exactly(setup):
    # features that say which quadrant is bright, and a head that knows which turn brings it there
    _, objective, _ = setup
    objective.head = torch.nn.Linear(4, 4, bias=False)
    objective.head.weight.data = 100 * torch.eye(4)[[0, 2, 3, 1]]  # the top left goes to the bottom left first

    def quadrants(images):
        means = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 16).flatten(1)
        return type("Seen", (), {"pooled": means})()

    view = torch.zeros(3, 3, 32, 32)
    view[:, :, :16, :16] = 1
    batch = Batch([view], torch.zeros(3).long(), torch.arange(3), step_generator(0, 0, 0, "loss"))
    out = objective.loss(quadrants, objective.features(quadrants, batch), batch)
    assert float(out["loss"]) < 1e-6 and float(out["accuracy"]) == 1.0


def test_nothing_is_drawn_and_everything_learns(setup):
    encoder, objective, batch = setup
    before = batch.generator.get_state()
    objective.loss(encoder, objective.features(encoder, batch), batch)["loss"].backward()
    assert torch.equal(before, batch.generator.get_state())
    assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()])


def test_a_constant_encoder_is_noticed_and_a_fresh_one_is_not(setup):
    encoder, objective, batch = setup
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() > 10 * objective.alarm
    with torch.no_grad():
        encoder.model.stages[-1][1].weight.zero_()
        encoder.model.stages[-1][1].bias.fill_(1.0)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() < objective.alarm
