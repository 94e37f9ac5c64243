"""On a GPU: is a recorded step the usual one, and what does it gain? Four networks at 32 px: supervised, alone and with
DRLoc and Masked Embedding, and BYOL.

    python benchmarks/gpu_check.py [--batch 128]

Correctness: the same steps from the same start are made as usual, as usual again, and recorded. Kernels that add in no
fixed order make even the first two differ; recorded ones may differ from them by ten times that, and by the rounding
of bfloat16 at most where the first two are equal. Speed: both step on views in memory, in turns of one second each;
printed are the medians over the turns, and the lowest and highest of their ratios. Exit code 1 if a recorded step is
another one, 66 without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from sandglass.auxiliary import AUXILIARY
from sandglass.backbones.grid import build
from sandglass.config import resolve
from sandglass.data.loader import Batch, step_generator
from sandglass.engine import optim
from sandglass.engine.graph import WARM, Record, Recorded, on_gpu
from sandglass.engine.step import Step
from sandglass.errors import Exit
from sandglass.objectives import OBJECTIVES

NETS = ("resnet18_small", "vit312", "t2t312", "cvt312")
KINDS = {"supervised": (), "supervised+tasks": ("drloc", "masked_embedding"), "byol": ()}  # auxiliary tasks of each
STEPS, ROUNDS, SECONDS = 12, 7, 1.0
ROUNDING = 2.0**-8  # of bfloat16


class Training:
    """A network on random views that lie on the device; `record` is None for steps as usual."""

    def __init__(self, net: str, kind: str, batch: int, device: torch.device, record: Record | None) -> None:
        torch.manual_seed(0)
        objective = kind.partition("+")[0]
        self.encoder = build(net, 32, 10 if objective == "supervised" else 0, [0.5] * 3, [0.25] * 3).to(device)
        self.objective = OBJECTIVES.get(objective)(self.encoder, resolve(OBJECTIVES, objective, {}), 10).to(device)
        tasks = {
            name: AUXILIARY.get(name)(self.encoder, resolve(AUXILIARY, name, {})).to(device) for name in KINDS[kind]
        }
        modules = torch.nn.ModuleList([self.encoder, self.objective, *tasks.values()]).train()
        optimizer = optim.build(optim.parameter_groups(modules, 0.05), "adamw", 5e-4, 0.9)
        step = Step(self.encoder, self.objective, tasks, optimizer, 3.0, half=device.type == "cuda")
        self.step = Recorded(step, record) if record else step
        count = self.objective.views[0]
        self.views = [[torch.rand(batch, 3, 32, 32, device=device) for _ in range(count)] for _ in range(4)]
        self.labels = [torch.randint(10, (batch,), device=device) for _ in range(4)]
        self.made = 0

    def go(self) -> torch.Tensor:
        """One step; its loss, on the device."""
        which = self.made % len(self.views)
        index = torch.arange(len(self.labels[which]))
        batch = Batch(self.views[which], self.labels[which], index, step_generator(0, 0, self.made, "loss"))
        torch.manual_seed(self.made)
        seen = self.step([batch])
        self.objective.after_step(self.encoder, 0.5)
        self.made += 1
        return seen.loss.clone()


def difference(net: str, kind: str, batch: int, device: torch.device, record: Record) -> tuple[float, float]:
    """The largest relative difference of a loss: of usual steps made twice, and of recorded ones."""
    usual, again, recorded = (
        torch.stack([training.go() for _ in range(STEPS)]).cpu()
        for training in (Training(net, kind, batch, device, how) for how in (None, None, record))
    )
    return tuple(float(((other - usual) / usual).abs().max()) for other in (again, recorded))  # type: ignore[return-value]


def speed(net: str, kind: str, batch: int, device: torch.device, record: Record, seconds: float) -> list[list[float]]:
    """Milliseconds of a step, as usual and recorded: a list of rounds each."""
    both = [Training(net, kind, batch, device, how) for how in (None, record)]
    found: list[list[float]] = [[], []]
    for training in both:
        for _ in range(WARM + 2):
            training.go()
    for _ in range(ROUNDS):
        for training, times in zip(both, found, strict=True):
            steps, began = 0, now(device)
            while steps < 2 or time.perf_counter() - began < seconds:
                training.go()
                steps += 1
            times.append(1000 * (now(device) - began) / steps)
    return found


def now(device: torch.device) -> float:
    """When everything asked for so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def row(net: str, kind: str, batch: int, device: torch.device, record: Record, seconds: float) -> tuple[str, bool]:
    """A line of the table, and whether the recorded step is the usual one."""
    noise, off = difference(net, kind, batch, device, record)
    right = off <= max(10 * noise, ROUNDING)
    usual, recorded = speed(net, kind, batch, device, record, seconds)
    ratios = [a / b for a, b in zip(usual, recorded, strict=True)]
    own, other = statistics.median(usual), statistics.median(recorded)
    text = f"{net:16}{kind:18}{noise:10.1e}{off:10.1e}{own:10.2f}{other:10.2f}"
    text += f"{statistics.median(ratios):8.2f} ({min(ratios):.2f} .. {max(ratios):.2f}){1000 * batch / other:12,.0f}"
    return text + ("" if right else "  ANOTHER STEP"), right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    batch = parser.parse_args().batch
    if not torch.cuda.is_available():
        print("no GPU is visible: nothing was checked", file=sys.stderr)
        return int(Exit.MISSING)
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {batch}, bfloat16, {ROUNDS} rounds")
    print("network         objective          usual +-  recorded  ms usual  ms recorded   ratio (spread)    images/s")
    right = True
    for net in NETS:
        for kind in KINDS:
            text, same = row(net, kind, batch, device, on_gpu, SECONDS)
            print(text, flush=True)
            right &= same
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
