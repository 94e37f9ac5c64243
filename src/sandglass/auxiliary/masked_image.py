"""Masked image: hide a share r of an image's patches and paint them from what the encoder says of the others."""

PAPER = "arXiv 2310.20704"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "form": ("simmim", {"simmim", "mae"}),  # hidden patches filled with a learned colour, or not shown at all
    "ratio": (0.75, 0.05, 0.95),  # r, share of the patches that is hidden
    "patch": (0, 0, 1024),  # px, side of a patch; 0: a cell of the grid (mae with Hiera: a mask unit)
    "head": ("linear", {"linear", "decoder"}),  # decoder: a small transformer before the linear map
    "target_norm": ("patch", {"none", "patch"}),  # patch: each patch with mean 0 and variance 1
    "budget": ("native", {"native", "matched"}),  # matched: a decoder with as many parameters as masked embedding's
}

PRESETS = {
    "thesis": {"weight": 9.0, "head": "decoder", "target_norm": "none", "lambda_schedule": "const"},
    "sound": {"weight": 0.1, "head": "linear", "target_norm": "patch", "lambda_schedule": "const"},
}
