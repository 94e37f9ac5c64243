"""Run one run of a study to its end, killing it (SIGKILL) at random instants on the way. Called by test_resume.py.

    python kill_campaign.py ROOT PARAMS STAGE KILLS SEED

Each attempt is a forked child that does exactly what `sandglass STAGE RUN` does; forking only saves the imports.
Prints the number of kills that found the child at work.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sandglass import stages
from sandglass.config import load
from sandglass.runs import RunFolder
from sandglass.study import plan

torch.set_num_threads(1)
root, params, stage, kills, seed = (
    Path(sys.argv[1]),
    load(Path(sys.argv[2])),
    sys.argv[3],
    int(sys.argv[4]),
    sys.argv[5],
)
chance = random.Random(seed)
run = next(r for r in plan(params) if r.stage == stage)
folder = RunFolder(root, run)
hits, attempts = 0, 0
while not folder.done():
    attempts += 1
    assert attempts < 40 * max(1, kills), "no progress"
    child = os.fork()
    if child == 0:
        stages.execute(run, params, params.study, root, say=lambda text: None)
        os._exit(0)
    if hits >= kills:
        assert os.waitpid(child, 0)[1] == 0
        continue
    time.sleep(chance.uniform(0.02, 0.5))
    os.kill(child, signal.SIGKILL)
    hits += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(hits)
