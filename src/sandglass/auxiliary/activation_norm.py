"""Activation norm: a penalty on the size of the grid, and nothing to solve.

loss = mean over images, cells and channels of E^2.
"""

PAPER = "arXiv 1708.01009"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # lambda
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
}

PRESETS = {
    "thesis": {"lambda_schedule": "const"},
    "sound": {"lambda_schedule": "const"},
}
