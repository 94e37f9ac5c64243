"""VICRegL: cells matched by feature and by place, against loops and against lightly; what alpha switches off."""

import pytest
import torch
from lightly.loss import VICRegLLoss
from lightly.models.modules.heads import VicRegLLocalProjectionHead
from lightly.transforms.random_crop_and_flip_with_grid import Location, RandomResizedCropAndFlip
from torch import nn

from sandglass.backbones.grid import build
from sandglass.data.loader import Batch, step_generator
from sandglass.errors import Problem
from sandglass.objectives.vicregl import SETTINGS, VICRegL, nearest, stretched
from sandglass.registry import default
from sandglass.views.ops import crop_spans, mirror
from sandglass.views.places import Places

IMAGES = 6
WIDTHS = {"hidden": 16, "out": 12, "local_hidden": 16, "local_out": 10}


def places():
    """Random crops, half of them mirrored."""
    boxes = torch.rand(IMAGES, 4) * 100 + 20
    rows, columns = crop_spans(boxes)
    return Places(rows, mirror(columns, torch.arange(IMAGES) % 2 == 0))


def setup(*sides, **settings):
    torch.manual_seed(0)
    encoder = build("toy", 32, 0, [0.5] * 3, [0.25] * 3).double()
    values = {key: default(row) for key, row in SETTINGS.items()} | WIDTHS | settings
    objective = VICRegL(encoder, values, 0).double()
    views = [torch.rand(IMAGES, 3, side, side, dtype=torch.float64) for side in sides]
    located = [places() for _ in sides]
    index = torch.arange(IMAGES)
    batch = Batch(views, torch.zeros_like(index), index, step_generator(0, 0, 0, "loss"), places=located)
    return encoder, objective, batch


def outputs(encoder, objective, batch):
    """z (N, D), cells (N, h, w, D') and centres (N, h, w, 2) of each view."""
    features = [encoder(view) for view in batch.views]
    z = [objective.projector(f.pooled) for f in features]
    cells = [objective.local_projector(f.grid.permute(0, 2, 3, 1)) for f in features]
    return z, cells, [place.centres(*c.shape[1:3]) for place, c in zip(batch.places, cells, strict=True)]


def loss_of(encoder, objective, batch):
    return objective.loss(encoder, objective.features(encoder, batch), batch)["loss"]


def spread_by_hand(x):
    """25 v + c of one x (N, D)."""
    n, d = x.shape
    covariances = (x - x.mean(0)).T @ (x - x.mean(0)) / (n - 1)
    v = sum(max(0, 1 - (covariances[i, i] + 1e-4) ** 0.5) for i in range(d)) / d
    return 25 * v + sum(covariances[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d


def compared_by_hand(a, b, at, among, keep, legacy=False):
    """R(a -> b; keep), one image and one cell at a time; places and features (N, L, .)."""
    matched = []
    for image in range(len(a)):
        found = []
        for cell in range(a.shape[1]):
            distances = (at[image, cell] - among[image]).detach().norm(dim=1).tolist()
            q = min(range(len(distances)), key=distances.__getitem__)
            found.append((distances[q], a[image, cell], b[image, q]))
        found.sort(key=lambda match: match[0])
        matched.append(found[:keep])
    ranks = [[torch.stack([m[rank][side] for m in matched]) for side in (1, 2)] for rank in range(len(matched[0]))]
    total = 25 * sum((x - y).square().mean() for x, y in ranks)
    if not legacy:
        total = total + sum((spread_by_hand(x) + spread_by_hand(y)) / 2 for x, y in ranks)
    return total / len(ranks)


def test_loss_is_the_papers():
    encoder, objective, batch = setup(32, 32, 16, alpha=0.3, matches=5, matches_back=2)
    z, cells, centres = outputs(encoder, objective, batch)
    cells, centres = ([x.flatten(1, 2) for x in xs] for xs in (cells, centres))
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    whole = sum(25 * (z[a] - z[b]).square().mean() for a, b in pairs) / 4 + sum(map(spread_by_hand, z)) / 3
    local = 0.0
    for a, b in pairs:
        for at, there, back in ((cells, None, None), (centres, 5, 2)):
            forth = compared_by_hand(cells[a], cells[b], at[a], at[b], there)
            local += (forth + compared_by_hand(cells[b], cells[a], at[b], at[a], back)) / 2 / 4
    torch.testing.assert_close(loss_of(encoder, objective, batch), 0.3 * whole + 0.7 * local)


def test_loss_is_lightlys_where_every_cell_is_kept():
    encoder, objective, batch = setup(32, 32, 16, 16, alpha=0.4, matches=16, matches_back=16)
    z, cells, centres = outputs(encoder, objective, batch)
    theirs = VICRegLLoss(alpha=0.4, num_matches=(16, 16))
    features = list(zip(z, cells, strict=True))
    expected = theirs(features[:2], centres[:2], features[2:], centres[2:])
    assert expected.shape == (1,)
    torch.testing.assert_close(loss_of(encoder, objective, batch), expected[0])


def test_legacy_has_one_pair_invariance_only_and_lightlys_grid():
    encoder, objective, batch = setup(32, 16, alpha=0.3, matches=5, matches_back=2, form="legacy")
    (z, y), cells, centres = outputs(encoder, objective, batch)
    whole = 25 * (z - y).square().mean()
    for x in (z, y):
        covariances = x.T.cov()
        whole += 25 / 2 * (1 - (covariances.diagonal() + 1e-4).sqrt()).relu().mean()
        whole += (covariances - covariances.diagonal().diag()).square().sum() / x.shape[1]
    a, b = (x.flatten(1, 2) for x in cells)
    local = 0.0
    for at, among in ((a, b), [stretched(centre).flatten(1, 2) for centre in centres]):
        forth, back = (
            compared_by_hand(a, b, at, among, 5, legacy=True),
            compared_by_hand(b, a, among, at, 2, legacy=True),
        )
        local += (forth + back) / 2
    torch.testing.assert_close(loss_of(encoder, objective, batch), 0.3 * whole + 0.7 * local)


@pytest.mark.parametrize("cells", [1, 4, 7])
@pytest.mark.parametrize("flipped", [False, True])
def test_legacy_grid_is_lightlys(cells, flipped):
    location = Location(30.0, 20.0, 70.0, 140.0, 300.0, 300.0, horizontal_flip=flipped)
    theirs = RandomResizedCropAndFlip(cells).location_to_NxN_grid(location)
    rows, columns = crop_spans(torch.tensor([[30.0, 20.0, 70.0, 140.0]]))
    centres = Places(rows, mirror(columns, torch.tensor([flipped]))).centres(cells, cells)
    torch.testing.assert_close(stretched(centres)[0].flip(-1), theirs.double())  # theirs has the column first


def test_a_mirrored_view_is_matched_cell_by_cell():
    torch.manual_seed(0)
    cells = torch.randn(2, 4, 4, 8)
    rows, columns = crop_spans(torch.rand(2, 4) * 100 + 20)
    turned = Places(rows, mirror(columns, torch.ones(2, dtype=torch.bool))).centres(4, 4).flatten(1, 2)
    straight = Places(rows, columns).centres(4, 4).flatten(1, 2)
    x, y = nearest(cells.flatten(1, 2), cells.flip(2).flatten(1, 2), straight, turned, None)
    assert torch.equal(x, y)


def test_the_nearest_come_first_and_may_share_a_match():
    a, b = torch.tensor([[[0.0], [10.0], [4.0]]]), torch.tensor([[[9.0], [1.5], [100.0]]])
    x, y = nearest(a, b, a, b, 2)
    assert x.flatten().tolist() == [10.0, 0.0] and y.flatten().tolist() == [9.0, 1.5]
    x, y = nearest(a, b, a, b, 20)
    assert x.flatten().tolist() == [10.0, 0.0, 4.0] and y.flatten().tolist() == [9.0, 1.5, 1.5]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_leaves_out_what_has_no_weight_and_gradients_reach_the_rest(alpha):
    encoder, objective, batch = setup(32, 32, alpha=alpha)
    assert (objective.projector is None) == (alpha == 0) and (objective.local_projector is None) == (alpha == 1)
    views = [view.requires_grad_() for view in batch.views]
    loss_of(encoder, objective, batch).backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    assert all(p.grad is not None for p in objective.parameters())
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_one_cell_is_refused_unless_cells_do_not_count():
    encoder = build("resnet18", 32, 0, [0.5] * 3, [0.25] * 3)
    values = {key: default(row) for key, row in SETTINGS.items()} | WIDTHS
    with pytest.raises(Problem) as refused:
        VICRegL(encoder, values, 0)
    assert refused.value.id == "T-160" and "resnet18_small at 32 px" in refused.value.why
    assert "alpha: 1.0" in refused.value.fix
    VICRegL(encoder, values | {"alpha": 1.0}, 0)


def test_lightlys_head_of_cells_sees_one_cell_at_a_time():
    head = VicRegLLocalProjectionHead(4, 5, 6)
    hidden = [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert [type(layer) for layer in head.layers] == [*hidden, *hidden, nn.Linear]


def test_a_constant_output_is_seen_as_collapse():
    encoder, objective, batch = setup(32, 32, alpha=0.0)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() > objective.alarm
    nn.init.zeros_(objective.local_projector.layers[-1].weight)
    objective.loss(encoder, objective.features(encoder, batch), batch)
    assert objective.spread() < objective.alarm
