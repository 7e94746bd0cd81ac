"""`python -m benchmarks.delta_releases [--peers PYTHON] [--keep FOLDER] [--only int8] [--lines FILE] [--write]`.

Patches between releases of a MobileNetV2 of 2.2 million parameters.

Trained on scikit-learn's digits, fine-tuned in four ways, and built like any release: batch norms folded, exported by our exporters
as int8, float16 and float32, ONNX and TFLite. Floors are benchmarks.delta's, over the tensors that the codec finds. PYTHON is an
interpreter of an environment that has bsdiff4, detools and hdiffpatch; zstd and xdelta3 are taken from the path. What is not
installed is shown as "-". FOLDER keeps the releases, so that a second run trains nothing. Speeds are CPU time of one process, the
best of several; memory is what a decoding takes above an interpreter with numpy. FILE keeps a line for every pair that was
measured, so that a run that was cut off goes on. --write writes benchmarks/delta_releases.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.delta import tensor_floor
from benchmarks.sticky import hub_of
from compiler.calibration.dataset import make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hubfacts import hub_inputs
from compiler.publish.delta import encode_delta
from compiler.publish.delta.walkers import find_tensors
from compiler.quantization.engine import quantize
from profiles.schema import Precision
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.delta.format import Kind
from runtimes.session import Array

KINDS = ("head only", "all weights, norms frozen", "all weights", "AdamW")
PRECISIONS = (Precision.INT8, Precision.FP16, Precision.FP32)
FORMATS = {"onnx": ".onnx", "tflite": ".tflite"}
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
PEERS = {
    "bsdiff4": "import bsdiff4;d=bsdiff4.diff(open(a,'rb').read(),open(b,'rb').read());open(o,'wb').write(d)",
    "detools": "import detools;detools.create_patch_filenames(a,b,o,compression='lzma')",
    "hdiffpatch": "import hdiffpatch;d=hdiffpatch.diff(open(a,'rb').read(),open(b,'rb').read());open(o,'wb').write(d)",
}
SIZE = 32
RATE, LIGHT_RATE = 0.005, 0.005 / 40
ENCODINGS, DECODINGS = 2, 7
PAGE = Path(__file__).with_suffix(".md")
DTYPES = {
    Kind.ORDERED16: np.dtype(np.float16),
    Kind.ORDERED32: np.dtype(np.float32),
    Kind.DIFF16: np.dtype(np.int16),
    Kind.DIFF32: np.dtype(np.int32),
    Kind.BRAIN16: np.dtype(np.int16),
}


def mobilenet_v2(classes: int) -> Any:
    """Sandler et al. (2018), table 2, at width 1; stride 1 in the stem, because the pictures are small."""
    from torch import nn

    def block(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, act: bool = True) -> list[Any]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), *([nn.ReLU6()] if act else [])]

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
            super().__init__()
            wide = inputs * factor
            layers = block(inputs, wide, 1, 1) if factor > 1 else []
            self.layers = nn.Sequential(
                *layers, *block(wide, wide, 3, stride, wide), *block(wide, outputs, 1, 1, act=False)
            )
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.residual else self.layers(x)

    layers, channels = block(3, 32, 3, 1), 32
    for factor, outputs, count, stride in SETTINGS:
        for index in range(count):
            layers.append(Inverted(channels, outputs, stride if index == 0 else 1, factor))
            channels = outputs
    layers += [*block(channels, 1280, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers)


def pictures() -> tuple[Array, Array]:
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32))
    large = torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bilinear")
    return large.repeat(1, 3, 1, 1).numpy(), digits.target


def fit(net: Any, optimizer: Any, rows: slice, epochs: int, *, moving_norms: bool) -> Any:
    import torch

    images, labels = pictures()
    x, y = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])
    net.train(moving_norms)
    order = torch.Generator().manual_seed(epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=order).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.eval()


def tuned(net: Any, kind: str) -> Any:
    import torch

    made = copy.deepcopy(net)
    weights = made[-1].parameters() if kind == "head only" else made.parameters()
    # Without norms that follow, the common rate leaves hardly a weight where it was: a light fine-tune takes a fortieth.
    rate = LIGHT_RATE if kind == "all weights, norms frozen" else RATE
    optimizer: Any = torch.optim.AdamW(weights, 1e-4) if kind == "AdamW" else torch.optim.SGD(weights, rate, 0.9)
    return fit(made, optimizer, slice(900, 1500), 2, moving_norms=kind in ("all weights", "AdamW"))


def write(net: Any, folder: Path) -> dict[tuple[str, Precision], Path]:
    """The artifacts of one release."""
    folder.mkdir(exist_ok=True)
    images, _ = pictures()
    hub = hub_of(net, images, folder)
    data = make_dataset({hub_inputs(hub)[0].name: images[:128]}, hub_inputs(hub), where="digits")
    models: dict[Precision, ir.Model] = dict.fromkeys(PRECISIONS, hub) | {Precision.INT8: quantize(hub, data).model}
    return {
        (fmt, precision): EXPORTERS.get(fmt)
        .export(model, folder / f"net-{precision.value}{suffix}", ExportOptions(precision))
        .path
        for precision, model in models.items()
        for fmt, suffix in FORMATS.items()
    }


def floor_bytes(old: bytes, new: bytes) -> float:
    """Over tensors of one name and size in both."""
    before = {t.key: t for t in find_tensors(old)}
    total = 0.0
    for after in find_tensors(new):
        found = before.get(after.key)
        if found is not None and (found.size, found.kind) == (after.size, after.kind):
            dtype = DTYPES.get(after.kind, np.dtype(np.int8))
            a, b = (
                np.frombuffer(d, dtype, t.size // dtype.itemsize, t.offset) for d, t in ((old, found), (new, after))
            )
            total += tensor_floor(a, b) / 8
    return total


def peer_sizes(a: Path, b: Path, folder: Path, python: str | None) -> dict[str, int | None]:
    """Bytes of every peer's patch; None where it is not installed."""
    out = folder / "peer"
    commands = {
        name: [python or "", "-c", f"a,b,o={str(a)!r},{str(b)!r},{str(out)!r}\n{code}"] for name, code in PEERS.items()
    }
    commands["zstd"] = ["zstd", "-qq", "-f", "-19", "--long=27", f"--patch-from={a}", str(b), "-o", str(out)]
    commands["xdelta3"] = ["xdelta3", "-9", "-f", "-e", "-s", str(a), str(b), str(out)]
    sizes: dict[str, int | None] = {}
    for name, command in commands.items():
        done = subprocess.run(command, capture_output=True) if shutil.which(command[0]) else None
        sizes[name] = out.stat().st_size if done is not None and done.returncode == 0 else None
    return sizes


@dataclass(frozen=True, slots=True)
class Measured:
    """One pair. Sizes in bytes, times in CPU seconds."""

    fine_tune: str
    precision: Precision
    format: str
    full: int
    packed: int  # by xz
    peers: dict[str, int | None]
    patch: int
    floor: float
    encode_s: float
    decode_s: float
    decode_mib: float

    def sizes(self) -> list[str]:
        peers = [f"{size:,}" if size is not None else "-" for size in self.peers.values()]
        known = [size for size in self.peers.values() if size is not None]
        best = f"{100 * (1 - self.patch / min(known)):.0f} %" if known else "-"
        over = f"{100 * (self.patch / self.floor - 1):+.1f} %" if self.floor else "-"
        sizes = [f"{self.full:,}", f"{self.packed:,}", *peers, f"{self.patch:,}", best, f"{self.floor:,.0f}", over]
        return [self.fine_tune, self.precision.value, self.format, *sizes]

    def speeds(self) -> list[str]:
        rates = [f"{self.full / 1e6 / seconds:.1f}" for seconds in (self.encode_s, self.decode_s)]
        return [self.fine_tune, self.precision.value, self.format, *rates, f"{self.decode_mib:.1f}"]


NAMES = ["fine-tune", "stored as", "format"]
SIZES = [*NAMES, "full", "xz", *PEERS, "zstd", "xdelta3", "ours", "smaller than the best", "floor", "over the floor"]
SPEEDS = [*NAMES, "encode MB/s", "decode MB/s", "decode MiB"]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def page(rows: list[Measured]) -> str:
    pairs = len(KINDS) * len(PRECISIONS) * len(FORMATS)
    return f"""# Deltas between releases

Written by `python -m benchmarks.delta_releases --write`, whose docstring says what is compared. Bytes; the floor of integers is the
order-0 entropy of each tensor's differences, that of floats counts the sign and the three highest bits of a difference by their
entropy, per tensor and exponent of the old weight, and the bits below as they are. {len(rows)} of {pairs} pairs are measured.

{table(SIZES, [row.sizes() for row in rows])}

MB/s of the new file in CPU time of one process, the best of {ENCODINGS} encodings and {DECODINGS} decodings, on
{platform.machine()} with {os.cpu_count()} cores that other programs share; MiB of a decoding above an interpreter with numpy.

{table(SPEEDS, [row.speeds() for row in rows])}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--peers", metavar="PYTHON", help="interpreter of an environment with bsdiff4, detools, hdiffpatch"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where releases are kept and looked for")
    parser.add_argument("--only", choices=[p.value for p in PRECISIONS], help="one precision")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="what was measured, a line for every pair")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        made = releases(chosen.keep or Path(name))
        lines = chosen.lines or Path(name) / "lines"
        rows = kept(lines)
        print(table(SIZES + SPEEDS[len(NAMES) :], []), flush=True)
        for fmt, precision, kind in itertools.product(FORMATS, PRECISIONS, KINDS):
            what = (kind, precision, fmt)
            if what not in rows and chosen.only in (None, precision.value):
                files = (made["before"][fmt, precision], made[kind][fmt, precision])
                rows[what] = measure(what, files, Path(name), chosen.peers)
                with lines.open("a") as file:
                    file.write(json.dumps(asdict(rows[what])) + "\n")
            if what in rows:
                print(line(rows[what].sizes() + rows[what].speeds()[len(NAMES) :]), flush=True)
    if chosen.write:
        PAGE.write_text(page(list(rows.values())))


def kept(lines: Path) -> dict[tuple[str, Precision, str], Measured]:
    """What an earlier run measured."""
    read = [json.loads(text) for text in lines.read_text().splitlines()] if lines.exists() else []
    found = [Measured(**row | {"precision": Precision(row["precision"])}) for row in read]
    return {(row.fine_tune, row.precision, row.format): row for row in found}


def releases(folder: Path) -> dict[str, dict[tuple[str, Precision], Path]]:
    """The release before, and one of every kind of fine-tuning; those that ``folder`` has are taken from it."""
    import torch

    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net = mobilenet_v2(10)
        net = fit(net, torch.optim.Adam(net.parameters(), 1e-3), slice(0, 900), 6, moving_norms=True)
        for kind in ("before", *KINDS):
            write(net if kind == "before" else tuned(net, kind), folder / kind)
        (folder / "complete").touch()
    return {
        kind: {
            (fmt, precision): folder / kind / f"net-{precision.value}{suffix}"
            for precision in PRECISIONS
            for fmt, suffix in FORMATS.items()
        }
        for kind in ("before", *KINDS)
    }


def measure(what: tuple[str, Precision, str], files: tuple[Path, Path], folder: Path, python: str | None) -> Measured:
    old, new = files
    full = new.stat().st_size
    patch, out = folder / "patch", folder / "out"
    encode_s = min(cpu_s(lambda: encode_delta(old, new, patch)) for _ in range(ENCODINGS))
    decode_s = min(cpu_s(lambda: apply_delta(old, patch, out, max_result_bytes=full)) for _ in range(DECODINGS))
    floor = floor_bytes(old.read_bytes(), new.read_bytes())
    packed = len(lzma.compress(new.read_bytes(), preset=6))
    peers = peer_sizes(old, new, folder, python)
    mib = decoding_mib(old, folder, full)
    return Measured(*what, full, packed, peers, patch.stat().st_size, floor, encode_s, decode_s, mib)


def cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def decoding_mib(old: Path, folder: Path, size: int) -> float:
    """Peak resident memory of a decoding in a fresh interpreter, above the same interpreter with numpy, in MiB (Linux)."""
    paths = ", ".join(f"Path({str(path)!r})" for path in (old, folder / "patch", folder / "out"))
    script = f"apply_delta({paths}, max_result_bytes={size})"
    return (peak_kib(script) - peak_kib("pass")) / 1024


def peak_kib(script: str) -> int:
    lines = [
        "from pathlib import Path",
        "import numpy",
        "from runtimes.artifact.delta import apply_delta" if script != "pass" else "",
        script,
        # Not ru_maxrss: a process begins with that of the one that started it.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, check=True, text=True)
    return int(done.stdout)


if __name__ == "__main__":
    main()
