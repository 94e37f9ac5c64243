"""Masked image: what is hidden cannot be seen, what is visible is not judged, and each form has its paper's loss."""

import math

import pytest
import torch

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem
from sandglass.objectives._masking import hidden_of, over_pixels
from sandglass.objectives.masked_image import MaskedImage

SIMMIM = {"form": "simmim", "ratio": 0.6, "mask_patch": 0}
DROP = {"form": "drop", "ratio": 0.75, "mask_patch": 0}
HIERA = {"embed_dim": 16, "stages": (1, 1, 1), "mask_unit_size": (4, 4), "mask_unit_attn": (True, True, False)}
HIERA |= {"patch_kernel": (3, 3), "patch_stride": (2, 2), "patch_padding": (1, 1)}
NARROW = {"embed_dim": 24, "depth": 1, "num_heads": 2}
CASES = [
    ("toy", {}, SIMMIM),
    ("toy", {}, SIMMIM | {"mask_patch": 4}),  # patches smaller than a cell
    ("resnet_toy", {}, SIMMIM),
    ("hourglass_tiny_r", {}, SIMMIM | {"mask_patch": 8}),
    ("vit_tiny_flat", {}, SIMMIM),
    ("vit_tiny_flat", {}, DROP),
    ("vit_tiny_flat", {"class_token": True, "reg_tokens": 2}, DROP | {"mask_patch": 8}),
    ("hiera_tiny_224", HIERA | {"q_pool": 2}, DROP),
    ("hiera_tiny_224", HIERA | {"q_pool": 1}, DROP),  # four cells in a mask unit
]


def made(name="toy", arguments=None, settings=SIMMIM, size=32):
    torch.manual_seed(0)
    encoder = build(name, size, 0, [0.5, 0.4, 0.3], [0.25, 0.2, 0.3], arguments or {})
    return encoder, MaskedImage(encoder, settings, 0)


def batch_of(view, rank=0, processes=1):
    n = len(view)
    return Batch([view], torch.zeros(n).long(), torch.arange(n), step_generator(0, 0, 0, "loss"), rank, processes)


@pytest.mark.parametrize(("name", "arguments", "settings"), CASES)
def test_the_encoder_cannot_see_what_is_hidden(name, arguments, settings):
    encoder, objective = made(name, arguments, settings)
    view = torch.rand(3, 3, 32, 32)
    first = objective.features(encoder, batch_of(view))[0].pooled
    where = over_pixels(objective.hidden, 32)
    assert objective.hidden.sum(1).tolist() == [objective.hiding.count] * 3
    other = torch.rand(3, 3, 32, 32)
    assert torch.equal(objective.features(encoder, batch_of(torch.where(where, other, view)))[0].pooled, first)
    changed = objective.features(encoder, batch_of(torch.where(where, view, other)))[0].pooled
    assert not torch.isclose(changed, first).all(1).any()


@pytest.mark.parametrize(("name", "arguments", "settings"), CASES)
def test_the_loss_is_of_hidden_pixels_alone_and_everything_learns(name, arguments, settings):
    encoder, objective = made(name, arguments, settings)
    view, other = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    features = objective.features(encoder, batch_of(view))
    where = over_pixels(objective.hidden, 32)
    loss = objective.loss(encoder, features, batch_of(view))["loss"]
    assert torch.equal(loss, objective.loss(encoder, features, batch_of(torch.where(where, view, other)))["loss"])
    assert (
        abs(float(loss - objective.loss(encoder, features, batch_of(torch.where(where, other, view)))["loss"])) > 1e-3
    )
    loss.backward()
    parameters = dict(encoder.named_parameters()) | {k: p for k, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()] == []


def test_simmim_is_the_mean_absolute_error_over_hidden_pixels():
    encoder, objective = made()
    encoder.double()
    objective.double()
    torch.nn.init.normal_(objective.way.mask_token)
    batch = batch_of(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    features = objective.features(encoder, batch)
    loss = objective.loss(encoder, features, batch)["loss"].detach()
    linear, total, number = objective.way.decode[0], 0.0, 0
    weight, bias = linear.weight.detach()[:, :, 0, 0], linear.bias.detach()
    for b in range(2):
        for patch in objective.hidden[b].nonzero().flatten().tolist():
            painted = weight @ features[0].grid[b, :, patch // 4, patch % 4].detach() + bias
            for channel in range(3):
                mean, std = (0.5, 0.4, 0.3)[channel], (0.25, 0.2, 0.3)[channel]
                for y in range(8):
                    for x in range(8):
                        pixel = float(batch.views[0][b, channel, 8 * (patch // 4) + y, 8 * (patch % 4) + x])
                        total += abs(float(painted[64 * channel + 8 * y + x]) - (pixel - mean) / std)
                        number += 1
    assert number == 2 * 10 * 3 * 64  # 0.6 of 16 patches, rounded up
    assert abs(float(loss) - total / number) < 1e-6  # the encoder's mean and deviation are float32 numbers


def test_drop_is_the_mean_squared_error_of_standardised_patches():
    encoder, objective = made("vit_tiny_flat", {}, DROP)
    batch = batch_of(torch.rand(2, 3, 32, 32))
    features = objective.features(encoder, batch)
    painted = objective.way.paint(features[0], objective.hidden).detach().double()
    loss = objective.loss(encoder, features, batch)["loss"].detach()
    pixels = ((batch.views[0] - encoder.mean) / encoder.std).double()
    errors = []
    for b in range(2):
        for patch in objective.hidden[b].nonzero().flatten().tolist():
            part = (b, slice(None), slice(patch // 8 * 4, patch // 8 * 4 + 4), slice(patch % 8 * 4, patch % 8 * 4 + 4))
            x = pixels[part].flatten()
            variance = ((x - x.mean()) ** 2).sum() / 47
            errors.append(((painted[part].flatten() - (x - x.mean()) / (variance + 1e-6).sqrt()) ** 2).mean())
    assert len(errors) == 2 * 48
    assert abs(float(loss) - float(sum(errors)) / len(errors)) < 1e-5


def test_painting_nothing_costs_what_the_target_is():
    for settings, name in ((SIMMIM, "toy"), (DROP, "vit_tiny_flat")):
        encoder, objective = made(name, {}, settings)
        torch.nn.init.zeros_(objective.way.decode[0].weight)
        torch.nn.init.zeros_(objective.way.decode[0].bias)
        view = torch.full((2, 3, 32, 32), 0.5) if name == "toy" else torch.rand(2, 3, 32, 32)
        loss = float(
            objective.loss(encoder, objective.features(encoder, batch_of(view)), batch_of(view))["loss"].detach()
        )
        flat = (0 / 0.25 + 0.1 / 0.2 + 0.2 / 0.3) / 3
        assert abs(loss - (flat if name == "toy" else 47 / 48)) < 1e-4  # variance is unbiased over 48 values


@pytest.mark.parametrize(("name", "arguments", "settings"), [case for case in CASES if case[2]["form"] == "drop"])
def test_with_nothing_hidden_the_visible_cells_are_the_whole_grid(name, arguments, settings):
    encoder, objective = made(name, arguments, settings)
    view, nothing = torch.rand(2, 3, 32, 32), torch.zeros(2, objective.hiding.patches, dtype=torch.bool)
    cells = objective.way.see(encoder, view, nothing).grid[..., 0]
    at = objective.way.seen(nothing)
    assert torch.allclose(encoder(view).grid.flatten(2).gather(2, at[:, None].expand_as(cells)), cells, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments", "settings"), [case for case in CASES if case[2]["form"] == "drop"])
def test_visible_cells_are_put_where_they_were(name, arguments, settings):
    encoder, objective = made(name, arguments, settings)
    objective.features(encoder, batch_of(torch.rand(4, 3, 32, 32)))
    side = objective.way.side
    hidden = over_pixels(objective.hidden, 32)[:, 0, :: 32 // side, :: 32 // side].flatten(1)
    for b, cells in enumerate(objective.way.seen(objective.hidden)):
        assert sorted(cells.tolist()) == (~hidden[b]).nonzero().flatten().tolist()


def test_lightlys_decoder_has_fixed_positions_and_a_learned_token():
    _, objective = made("vit_tiny_flat", {}, DROP)
    decoder = objective.way.decoder
    assert decoder.mask_token.requires_grad and not decoder.pos_embed.requires_grad
    assert decoder.pos_embed.shape == (1, 64, 256) and len(decoder.pos_embed[0].unique(dim=0)) == 64
    tokens, order = torch.randn(1, 64, 256), torch.randperm(64)
    assert torch.allclose(decoder.decode(tokens)[:, order], decoder.decode(tokens[:, order]), atol=1e-4)  # no prefix


def test_hidden_pixels_show_the_learned_patch():
    encoder, objective = made()
    torch.nn.init.normal_(objective.way.mask_token)
    seen = []
    encoder.model.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    view = torch.rand(2, 3, 32, 32)
    objective.features(encoder, batch_of(view))
    for b in range(2):
        for patch in range(16):
            part = (slice(None), slice(patch // 4 * 8, patch // 4 * 8 + 8), slice(patch % 4 * 8, patch % 4 * 8 + 8))
            real = (view[b] - encoder.mean[0]) / encoder.std[0]
            expected = objective.way.mask_token if objective.hidden[b, patch] else real[part]
            assert torch.allclose(seen[0][b][part], expected, atol=1e-5)


def test_shares_are_rounded_up_and_not_by_rounding_errors():
    assert [hidden_of(16, 0.6), hidden_of(10, 0.7), hidden_of(100, 0.07), hidden_of(196, 0.75)] == [10, 7, 7, 147]
    for patches in (16, 49, 64, 196):  # MAE keeps the whole part of what is visible
        assert patches - hidden_of(patches, 0.75) == math.floor(patches * 0.25)


def test_processes_that_share_a_batch_hide_what_one_hides():
    encoder, objective = made()
    view, hidden = torch.rand(8, 3, 32, 32), []
    for rank, processes, rows in ((0, 1, slice(8)), (0, 2, slice(4)), (1, 2, slice(4, 8))):
        objective.features(encoder, batch_of(view[rows], rank, processes))
        hidden.append(objective.hidden)
    assert torch.equal(hidden[0], torch.cat(hidden[1:])) and len(hidden[0].unique(dim=0)) > 1


def test_a_constant_encoder_is_noticed_and_a_fresh_one_is_not():
    encoder, objective = made()
    batch = batch_of(torch.rand(8, 3, 32, 32))
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() > objective.alarm
    with torch.no_grad():
        encoder.model.stages[-1][1].weight.zero_()
        encoder.model.stages[-1][1].bias.fill_(1.0)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() < objective.alarm


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "id", "fix"),
    [
        ("toy", {}, DROP, "T-161", "form: simmim"),
        ("hourglass_tiny", {}, DROP, "T-161", "form: simmim"),
        ("t2t312", NARROW, DROP, "T-161", "objectives.masked_image.form: simmim"),  # a ViT whose patches overlap
        ("sl_vit312", NARROW, DROP, "T-161", "form: simmim"),
        ("toy", {}, SIMMIM | {"mask_patch": 6}, "T-163", "mask_patch: 2 or 4 or 8"),
        ("resnet18", {}, SIMMIM, "T-163", "mask_patch: 4 or 8 or 16"),  # its grid is one cell
        ("vit_tiny_flat", {}, DROP | {"mask_patch": 2}, "T-163", "mask_patch: 4 or 8"),
        ("hiera_tiny_224", HIERA | {"q_pool": 2}, DROP | {"mask_patch": 4}, "T-163", "mask_patch: 8"),
    ],
)
def test_what_cannot_be_hidden_is_refused_with_what_can(name, arguments, settings, id, fix):
    with pytest.raises(Problem) as caught:
        made(name, arguments, settings)
    assert caught.value.id == id and caught.value.exit == 78 and fix in caught.value.fix
