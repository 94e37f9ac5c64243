"""On photographs a batch of views cannot be told from views that torchvision makes one PIL image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sandglass.data import catalog, pack
from sandglass.data.loader import open_split, step_generator
from sandglass.views.recipes import make_views

COPIES = 4  # views of each of the 5,000 training images


@pytest.fixture(scope="module")
def views(tmp_path_factory, shared_data):
    """Ours and PIL's, uint8 (20000, 3, 32, 32) each, image i in rows i, i + 5000, ...; both with 8-bit rounding."""
    folder = tmp_path_factory.mktemp("cifar10")
    entry = catalog.Entry(name="cifar10-subset", format="cifar10", about="", source="")
    archive = shared_data / "cifar10" / "cifar-10-python-subset.tar.gz"
    pack.pack(entry, archive, folder, store_size=None, val_fraction=0.0, seed=0, on_bad_image="error")
    images, sizes = (split := open_split(folder, "train")).take(np.arange(len(split)))
    ours = torch.cat(make_views("baseline", {"count": COPIES}, images, sizes, 32, step_generator(0, 0, 0, "test")))
    one_by_one = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    torch.manual_seed(1)
    pil = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    theirs = np.stack([np.asarray(one_by_one(image)) for _ in range(COPIES) for image in pil])
    return (ours * 255).round().byte(), torch.from_numpy(theirs).permute(0, 3, 1, 2).contiguous()


def test_marginals_agree(views):
    """Means within 1 %, or within four standard errors where those are larger."""

    def traits(pixels):
        x = pixels.double() / 255
        grey = (pixels[:, :1] == pixels).flatten(1).all(1).double()
        saturation = (x.amax(1) - x.amin(1)).mean((1, 2))
        laplacian = 4 * x[..., 1:-1, 1:-1] - x[..., 2:, 1:-1] - x[..., :-2, 1:-1] - x[..., 1:-1, 2:] - x[..., 1:-1, :-2]
        columns = [*x.mean((2, 3)).T, *x.std((2, 3)).T, saturation, laplacian.square().mean((1, 2, 3)), grey]
        return torch.stack(columns, 1)

    ours, theirs = (traits(v) for v in views)
    error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
    allowed = torch.maximum(0.01 * theirs.mean(0), 4 * error)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < allowed).all(), (ours.mean(0) / theirs.mean(0), 4 * error)


def test_a_classifier_cannot_tell_them_apart(views):
    """Logistic regression on random projections and colour histograms, tested on images it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    chance = np.random.default_rng(2)
    projection = chance.normal(size=(3 * 32 * 32, 64)) / 55

    def features(pixels):
        flat = pixels.flatten(1).numpy() / 255
        bins = (pixels.flatten(2).numpy() // 32)[..., None] == np.arange(8)
        return np.concatenate([flat @ projection, bins.mean(2).reshape(len(flat), -1)], 1)

    first = np.tile(np.arange(len(views[0]) // COPIES), COPIES) % 2 == 0  # by image: no image on both sides
    x = np.concatenate([features(v) for v in views])
    y = np.repeat([0, 1], len(views[0]))
    side = np.tile(first, 2)
    scale = StandardScaler().fit(x[side])
    model = LogisticRegression(max_iter=500).fit(scale.transform(x[side]), y[side])
    found = roc_auc_score(y[~side], model.decision_function(scale.transform(x[~side])))
    assert found <= 0.52, found
    shifted = np.concatenate([x[: len(y) // 2], x[: len(y) // 2] + 0.02])  # and it can tell what is different
    model = LogisticRegression(max_iter=500).fit(scale.transform(shifted[side]), y[side])
    assert roc_auc_score(y[~side], model.decision_function(scale.transform(shifted[~side]))) > 0.6
