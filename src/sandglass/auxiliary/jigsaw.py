"""Jigsaw: the cells of an image are shuffled, and each must tell where it came from."""

PAPER = "arXiv 2207.11971"

SETTINGS = {
    "weight": (0.1, 0.0, 10.0),  # eta
    "lambda_schedule": ("const", {"const", "warmup_decay"}),
    "form": ("pixels", {"pixels", "tokens"}),  # what is shuffled; tokens: a plain ViT's, without positions
    "ratio": (0.5, 0.0, 0.95),  # gamma, share of the tokens that is dropped; pixels are all kept
    "encoder": ("trained", {"trained", "untrained"}),  # untrained: the control, a frozen copy from before training
    "budget": ("native", {"native", "matched"}),  # matched: as many parameters as masked embedding's decoder
}

PRESETS = {
    "thesis": {"weight": 0.1, "ratio": 0.5, "lambda_schedule": "const"},
    "sound": {"weight": 0.1, "ratio": 0.5, "lambda_schedule": "const"},
}
