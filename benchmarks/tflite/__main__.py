"""`python -m benchmarks.tflite`: latency and size of our files as ratios to the peers', and what writing costs, as Markdown.

The peers live in an environment of their own, whose python is given; without it only our own figures appear.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.tflite.latency import answers, ratio
from benchmarks.tflite.nets import NETS, Net, prepare
from benchmarks.tflite.writers import OURS, WRITERS, Written, write
from benchmarks.tflite.writing import measure
from runtimes.session import Array

# Like against like: onnx2tf's files take images with channels last, litert-torch's with channels first.
OPPONENTS = (("edgewright nhwc", "onnx2tf"), ("edgewright", "litert-torch"))
WRONG = 0.2  # of the output's range: past it a float file does not compute the net


@dataclass(frozen=True, slots=True)
class Figure:
    """Ours divided by the peer's."""

    latency: float
    size: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tflite", description=__doc__)
    parser.add_argument("--peers-python", type=Path, help="python of an environment with onnx2tf and litert-torch")
    parser.add_argument("--work", type=Path, help="keep nets and files here, and take those that are there")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of runs per comparison")
    parser.add_argument("--no-writing", action="store_true", help="leave out the time and memory of writing")
    parser.add_argument("--convert-only", action="store_true", help="make the files, measure nothing")
    parser.add_argument("names", nargs="*", default=list(NETS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        nets = [prepare(name, options.work or Path(folder)) for name in options.names]
        for quantized in (False, True):
            _table(nets, quantized, options.peers_python, 0 if options.convert_only else options.rounds)
        if not options.convert_only and not options.no_writing:
            _writing(nets)


def _table(nets: list[Net], quantized: bool, peers: Path | None, rounds: int) -> None:
    print(f"\n### {'INT8' if quantized else 'float32'}\n")
    print("| net | " + " | ".join(f"{ours} / {peer}: latency | size" for ours, peer in OPPONENTS) + " | ms |")
    print("|---|" + "---|" * (2 * len(OPPONENTS) + 1))
    found: dict[str, list[Figure]] = {peer: [] for _, peer in OPPONENTS}
    for net in nets:
        files = {name: write(name, net, quantized=quantized, peers=peers) for name in (*OURS, *found)}
        print(f"| {net.name} | {_row(net, files, found, quantized, rounds)} |", flush=True)
    cells = [
        f"{_median(f.latency for f in figures)} | {_median(f.size for f in figures)}" for figures in found.values()
    ]
    print(f"| **median** | {' | '.join(cells)} | |", flush=True)


def _row(net: Net, files: dict[str, Written], found: dict[str, list[Figure]], quantized: bool, rounds: int) -> str:
    cells, milliseconds = [], 0.0
    for ours, peer in OPPONENTS:
        mine, theirs = files[ours], files[peer]
        problem = theirs.failure or ("" if not rounds else _wrong(net, theirs, quantized))
        if problem or theirs.path is None or mine.path is None or not rounds:
            cells.append(f"{problem.replace('|', '/') or 'made'} | ")
            continue
        times, milliseconds, _ = ratio(mine.path, theirs.path, rounds=rounds)
        figure = Figure(times, mine.path.stat().st_size / theirs.path.stat().st_size)
        found[peer].append(figure)
        cells.append(f"{figure.latency:.2f} | {figure.size:.3f}")
    return f"{' | '.join(cells)} | {milliseconds:.1f}"


def _wrong(net: Net, written: Written, quantized: bool) -> str:
    """What disqualifies a file: answers that are not the net's; of INT8 files, which random weights treat badly, only NaN."""
    assert written.path is not None
    images = np.load(net.data)[:2]
    got, want = answers(written.path, images, channels_last=written.channels_last), _expected(net, images)
    error = float(np.abs(got - want).max() / np.ptp(want))
    bad = not np.isfinite(error) or (not quantized and error > WRONG)
    return f"wrong: {error:.1g} of the range" if bad else ""


def _expected(net: Net, images: Array) -> Array:
    from compiler.hub_session import open_hub
    from runtimes.session import run_dataset

    model = ir.load(net.hub)
    with open_hub(model) as session:
        return next(iter(run_dataset(session, {str(model.graph.inputs[0].name): images}).values()))


def _median(values: object) -> str:
    listed = list(values)  # type: ignore[call-overload]
    return f"**{statistics.median(listed):.2f}** ({len(listed)})" if listed else "none"


def _writing(nets: list[Net]) -> None:
    print("\n### Writing\n")
    print("| net | precision | seconds | file MB | allocated / file | resident growth / file |")
    print("|---|---|---|---|---|---|")
    for net in nets:
        for quantized in (False, True):
            one = measure(net.quantized if quantized else net.hub, quantized=quantized)
            shares = f"{one.allocated_bytes / one.file_bytes:.2f} | {one.resident_bytes / one.file_bytes:.2f}"
            kind = "int8" if quantized else "fp32"
            print(f"| {net.name} | {kind} | {one.seconds:.2f} | {one.file_bytes / 1e6:.1f} | {shares} |", flush=True)


if __name__ == "__main__":
    assert set(OURS) < set(WRITERS)
    main()
