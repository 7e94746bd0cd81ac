"""Latency of two files as a ratio: both loaded, run turn and turn about.

What is counted is the CPU time of the one thread that computes, which is the latency on an idle machine: on a busy one, waiting for
a core made the ratios of one pair of files range from 0.5 to 6.6.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtimes.session import Array

WARM_UP = 3


def ratio(first: Path, second: Path, *, rounds: int) -> tuple[float, float, float]:
    """Median of (time of ``first`` / time of ``second``) over ``rounds`` pairs, and both medians in milliseconds."""
    runners = [_runner(path) for path in (first, second)]
    for _ in range(WARM_UP):
        for run in runners:
            run()
    pairs = []
    for number in range(rounds):
        # Who goes first changes, for the second of a pair finds the caches of the first.
        order = (0, 1) if number % 2 == 0 else (1, 0)
        times = [0.0, 0.0]
        for index in order:
            start = time.thread_time()
            runners[index]()
            times[index] = time.thread_time() - start
        pairs.append(times)
    medians = [statistics.median(pair[index] for pair in pairs) * 1e3 for index in (0, 1)]
    return statistics.median(a / b for a, b in pairs), medians[0], medians[1]


def _interpreter(path: Path) -> object:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _runner(path: Path) -> Callable[[], None]:
    interpreter: object = _interpreter(path)
    for detail in interpreter.get_input_details():  # type: ignore[attr-defined]
        shape, dtype = tuple(detail["shape"]), detail["dtype"]
        data = np.random.default_rng(0).random(shape)
        interpreter.set_tensor(
            detail["index"], (data * 100 if np.issubdtype(dtype, np.integer) else data).astype(dtype)
        )  # type: ignore[attr-defined]
    return interpreter.invoke  # type: ignore[attr-defined, no-any-return]


def answers(path: Path, images: Array, *, channels_last: bool) -> Array:
    """The first output, dequantized, for images [N, 3, H, W] one by one; inputs and outputs float or integer."""
    interpreter: object = _interpreter(path)
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]  # type: ignore[attr-defined]
    found = []
    for image in images:
        data = image[None].transpose(0, 2, 3, 1) if channels_last else image[None]
        scale, zero = source["quantization"]
        if scale:
            limits = np.iinfo(source["dtype"])
            data = np.clip(np.rint(data / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(source["index"], np.ascontiguousarray(data).astype(source["dtype"]))  # type: ignore[attr-defined]
        interpreter.invoke()  # type: ignore[attr-defined]
        output = interpreter.get_tensor(result["index"]).astype(np.float32)  # type: ignore[attr-defined]
        scale, zero = result["quantization"]
        found.append((output - zero) * scale if scale else output)
    return np.concatenate(found)
