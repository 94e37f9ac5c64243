"""A model as an ONNX file, for programs without torch: it is kept only if ONNX Runtime computes what the model does.

Input `images`: float32 (batch, 3, size, size), normalised as for timm; the batch is free, the size is not. Output:
`logits` or `features`, (batch, width). The packages are those of the extra `onnx`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from sandglass.errors import Exit, Problem

FILE = "model.onnx"
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order differ by 1e-7 to 1e-5


def convert(folder: Path, size: int) -> float:
    """Write FILE beside the weights in `folder`, the export of a run; the largest difference, by the largest output.

    The difference is over batches of 1 and 5 images of noise, neither of which is the batch that was traced. Raises
    Problem: R-132 (78) the extra is not installed; R-133 (65) the file computes something else, and is removed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        fix = "pip install 'sandglass[onnx]'"
        raise Problem("R-132", Exit.CONFIG, "--onnx needs onnx, onnxscript and onnxruntime", fix=fix) from None
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    file = folder / FILE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch deprecates within itself
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),
            file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits" if model.num_classes else "features"],
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    difference = max(_difference(model, session, torch.randn(n, 3, size, size)) for n in (1, 5))
    if not difference <= TOLERANCE:
        file.unlink()
        what = f"the ONNX file's output is {difference:.1e} of the largest output away from the model's"
        fix = "export without --onnx, and report this"
        raise Problem("R-133", Exit.CONTENT, what, why=f"{TOLERANCE:.0e} is what float32 explains", fix=fix)
    return difference


@torch.no_grad()
def _difference(model: nn.Module, session: Any, images: torch.Tensor) -> float:
    ours, theirs = model(images).numpy(), session.run(None, {"images": images.numpy()})[0]
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())
