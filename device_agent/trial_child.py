"""The child process of a trial: opens the candidate, runs its self-test, prints what it found as one JSON line.

Run as ``python -m device_agent.trial_child`` with the request on stdin. It judges nothing: trial.py does, so that a
child that lies, dies or hangs is judged as well.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.artifact.manifest import Manifest, read_manifest
from runtimes.errors import ManifestError
from runtimes.registry import open_session
from runtimes.session import Array, Feeds, Session, SessionOptions, run_dataset

MAX_VECTOR_BYTES = 256 << 20
TIMED_RUNS = 10


def main() -> None:
    # Runtimes print banners on stdout; the answer keeps a pipe of its own.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        found = examine(Path(request["folder"]), request["open"], request["runtime"], request["threads"])
    except Exception as error:  # every failure of a candidate is a finding
        found = {"error": f"{type(error).__name__}: {error}"}
    found["peak_memory_bytes"] = peak_memory_bytes()
    json.dump(found, answer)
    answer.close()


def examine(folder: Path, opened: str, runtime: str, threads: int) -> dict[str, Any]:
    """Open and run the candidate in ``folder``; figures only.

    Raises:
        EdgewrightError: it cannot be opened or run, or does not have the inputs and outputs of its manifest.
    """
    manifest = read_manifest((folder / "manifest.json").read_bytes())
    inputs, expected = read_vectors(folder / manifest.self_test.vectors.path)
    with open_session(folder / opened, runtime=runtime, options=SessionOptions(threads=threads)) as session:
        check_interface(session, manifest)
        outputs = run_dataset(session, inputs)
        return {**compare(outputs, expected), "latency_ms": latency_ms(session, inputs)}


def read_vectors(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and expected outputs of an .npz with ``in/<name>`` and ``out/<name>``. Raises ManifestError."""
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > MAX_VECTOR_BYTES:
        raise ManifestError(f"The vectors unpack to {size} bytes.", remedy="Publish fewer self-test samples.")
    with np.load(path, allow_pickle=False) as data:
        inputs = {key[3:]: data[key] for key in data.files if key.startswith("in/")}
        outputs = {key[4:]: data[key] for key in data.files if key.startswith("out/")}
    if not inputs or not outputs:
        raise ManifestError("The vectors have no in/ or no out/ arrays.", remedy="Publish the release again.")
    return inputs, outputs


def check_interface(session: Session, manifest: Manifest) -> None:
    """Raises ManifestError if names, dtypes or shapes differ between the model and its manifest."""
    for have, want in ((session.inputs, manifest.inputs), (session.outputs, manifest.outputs)):
        actual = {s.name: (s.dtype, s.shape) for s in have}
        promised = {s.name: (s.dtype, s.shape) for s in want}
        for name in actual.keys() | promised.keys():
            a, p = actual.get(name), promised.get(name)
            if a is None or p is None or a[0] != p[0] or not _fits(a[1], p[1]):
                raise ManifestError(
                    f"Tensor {name!r} is {a} in the model and {p} in the manifest.", remedy="Publish the release again."
                )


def _fits(actual: tuple[int | None, ...], promised: tuple[int | None, ...]) -> bool:
    pairs = zip(actual, promised, strict=False)
    return len(actual) == len(promised) and all(a is None or p is None or a == p for a, p in pairs)


def compare(outputs: Feeds, expected: Feeds) -> dict[str, Any]:
    """Largest absolute difference, share of samples whose argmax agrees (worst output), and whether all is finite."""
    worst, agreement, finite, name_of_worst = 0.0, 1.0, True, ""
    for name, want in expected.items():
        have = outputs.get(name)
        if have is None or have.shape != want.shape:
            raise ManifestError(
                f"Output {name!r} has shape {None if have is None else have.shape}, the vectors say {want.shape}.",
                remedy="Publish the release again.",
            )
        finite = finite and bool(np.isfinite(have).all())
        with np.errstate(invalid="ignore"):
            error = float(np.max(np.abs(have.astype(np.float64) - want.astype(np.float64)), initial=0.0))
        if not error <= worst:  # also true for NaN
            worst, name_of_worst = error, name
        if want.ndim >= 2 and want.shape[-1] > 1:
            agreement = min(agreement, float(np.mean(have.argmax(-1) == want.argmax(-1))))
    samples = len(next(iter(expected.values())))
    return {
        "finite": finite,
        "max_abs_error": worst if np.isfinite(worst) else None,
        "worst_output": name_of_worst,
        "agreement": agreement,
        "samples": samples,
    }


def latency_ms(session: Session, inputs: Feeds) -> float:
    """Median time of one run at the model's own batch size, after one warm-up run."""
    batch = next((s.shape[0] for s in session.inputs if s.shape), None) or 1
    feeds = {name: np.resize(a, (batch, *a.shape[1:])) if a.ndim else a for name, a in inputs.items()}
    session.run(feeds)
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter_ns()
        session.run(feeds)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6


def peak_memory_bytes(pid: int | str = "self") -> int:
    """VmHWM: unlike ru_maxrss it starts anew at exec, so a large parent does not count. 0 where /proc is missing."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return 0


if __name__ == "__main__":
    main()
