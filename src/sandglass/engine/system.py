"""What the machine does while a run works: one line a sample in a small file, under the names that MLflow gives them.

A daemon thread looks every second at first and once a minute in a long run, so that the file stays small. It draws no
random numbers, nobody waits for it, and whatever goes wrong in it ends the sampling and not the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

MEGABYTE = 1e6


@contextlib.contextmanager
def sampled(path: Path) -> Iterator[None]:
    """Inside, samples are appended to `path`; "seconds" go on from where an earlier attempt stopped."""
    done = threading.Event()
    threading.Thread(target=_watch, args=(path, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(path: Path, done: threading.Event) -> None:
    with contextlib.suppress(Exception), path.open("ab", buffering=0) as file:
        began = time.monotonic() - _seconds(path)
        psutil.cpu_percent()  # counts from here
        network, gpus = psutil.net_io_counters(), _gpus()
        while not done.wait(min(60.0, 1.0 + (time.monotonic() - began) / 50)):
            now = psutil.net_io_counters()
            memory, disk = psutil.virtual_memory(), shutil.disk_usage(path.parent)
            row = {
                "cpu_utilization_percentage": psutil.cpu_percent(),
                "system_memory_usage_megabytes": memory.used / MEGABYTE,
                "system_memory_usage_percentage": memory.percent,
                "disk_usage_percentage": 100 * disk.used / disk.total,
                "disk_available_megabytes": disk.free / MEGABYTE,
                "network_receive_megabytes": (now.bytes_recv - network.bytes_recv) / MEGABYTE,
                "network_transmit_megabytes": (now.bytes_sent - network.bytes_sent) / MEGABYTE,
            }
            values = {"seconds": time.monotonic() - began} | row | gpus()
            file.write(json.dumps({key: round(value, 1) for key, value in values.items()}).encode() + b"\n")


def _seconds(path: Path) -> float:
    """Where an earlier attempt stopped."""
    lines = path.read_bytes().splitlines()
    return float(json.loads(lines[-1])["seconds"]) if lines else 0.0


def _gpus() -> Callable[[], dict[str, float]]:
    """A function that looks at the GPUs this process may use; without one, or without nvidia-ml-py, at nothing."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = range(nvml.nvmlDeviceGetCount()) if visible is None else visible.split(",")
        handles = [_gpu(nvml, name) for name in names if name != ""]
    except Exception:  # no driver, no library, or a name that is no GPU's
        return dict

    def look() -> dict[str, float]:
        row: dict[str, float] = {}
        for i, handle in enumerate(handles):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            row[f"gpu_{i}_utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            row[f"gpu_{i}_memory_usage_megabytes"] = memory.used / MEGABYTE
            row[f"gpu_{i}_memory_usage_percentage"] = 100 * memory.used / memory.total
        return row

    return look


def _gpu(nvml: Any, name: int | str) -> Any:
    if isinstance(name, str) and not name.isdecimal():
        return nvml.nvmlDeviceGetHandleByUUID(name)
    return nvml.nvmlDeviceGetHandleByIndex(int(name))
