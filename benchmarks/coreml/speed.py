"""`python -m benchmarks.coreml speed`: the reference evaluator's time and memory on MobileNetV2 at 224x224.

Each precision runs in a child process of its own, one thread: time to open the package, then the fastest and the median of a few
runs; peak memory is the child's high-water mark, the interpreter included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 5
PRECISIONS = ("fp32", "fp16")
TARGET_S = 2.0  # what verification may take for one picture


@dataclass(frozen=True)
class Timing:
    open_s: float
    fastest_s: float
    median_s: float
    peak_mib: float


def measure(path: str, shape: tuple[int, ...], runs: int) -> Timing:
    """Runs inside the child."""
    from runtimes.coreml_reference.session import open_package
    from runtimes.memory import peak_memory_bytes

    start = time.perf_counter()
    with open_package(Path(path)) as session:
        opened = time.perf_counter() - start
        feeds = {session.inputs[0].name: np.random.default_rng(0).random(shape).astype(np.float32)}
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
    return Timing(opened, min(times), statistics.median(times), peak_memory_bytes() / 2**20)


def main(names: Sequence[str]) -> int:
    """Print one line per net and precision; 1 if a run takes TARGET_S or more."""
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from profiles.schema import Precision
    from runtimes.isolation import run_isolated

    slow = False
    print("| net | precision | open s | fastest run s | median run s | peak memory MiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ("mobilenetv2_100",):
            imported: Any = imported_net(name, 224, Path(folder))
            for precision in PRECISIONS:
                path = Path(folder) / f"{name}-{precision}.mlpackage"
                EXPORTERS.get("coreml").export(imported.model, path, ExportOptions(Precision(precision)))
                arguments = {"path": str(path), "shape": (1, 3, 224, 224), "runs": RUNS}
                found: Timing = run_isolated("benchmarks.coreml.speed:measure", arguments, timeout_s=600)
                slow |= found.fastest_s >= TARGET_S
                print(
                    f"| {name} | {precision} | {found.open_s:.2f} | {found.fastest_s:.2f} | {found.median_s:.2f} "
                    f"| {found.peak_mib:.0f} |",
                    flush=True,
                )
    return int(slow)


def imported_net(name: str, size: int, folder: Path) -> object:
    """A timm net with seeded random weights, through PyTorch's export and the importer."""
    import torch

    from compiler.importers import import_model
    from compiler.importers.base import ImportOptions
    from tests.timm_models import create

    source = folder / f"{name}.pt2"
    torch.export.save(torch.export.export(create(name, seed=0), (torch.zeros(1, 3, size, size),)), source)
    return import_model(str(source), ImportOptions())
