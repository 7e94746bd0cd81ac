"""`python -m benchmarks.delta`: patches of fine-tuned nets on scikit-learn's digits against general delta tools.

A small convolutional net is trained here, then fine-tuned in four ways; every pair is stored as ONNX in int8, float16 and
float32. Floors are order-0 entropies: int8 of modular differences per tensor; floats of ordered differences per tensor and
exponent of the old weight, of which the sign and the three highest bits are counted by their entropy and what lies below as it is
(most differences are distinct: their own entropy would be that of the sample, which no code without the sample reaches).

zstd --patch-from and bsdiff4 take part where they are installed.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, Any]
KINDS = ("head only", "light SGD", "full SGD", "AdamW")
DTYPES = ("int8", "float16", "float32")


def pairs(width: int) -> dict[str, tuple[Weights, Weights]]:
    """Weights before and after every kind of fine-tuning, float32."""
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32))
    labels = torch.from_numpy(digits.target)

    def net() -> Any:
        layers: list[Any] = [torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.ReLU()]
        for _ in range(4):
            layers += [
                torch.nn.Conv2d(width, width, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2, ceil_mode=True),
            ]
        return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(width, 10))

    def train(model: Any, optimizer: Any, steps: int, first: int, last: int) -> Weights:
        order = torch.Generator().manual_seed(steps)
        for _ in range(steps):
            batch = torch.randint(first, last, (64,), generator=order)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}

    source = net()
    before = train(source, torch.optim.Adam(source.parameters(), 1e-3), 100, 0, 900)
    made = {}
    for kind in KINDS:
        tuned = net()
        tuned.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in before.items()})
        head = list(tuned[-1].parameters())
        optimizer = {
            "head only": lambda h=head: torch.optim.SGD(h, 0.05),
            "light SGD": lambda t=tuned: torch.optim.SGD(t.parameters(), 0.005),
            "full SGD": lambda t=tuned: torch.optim.SGD(t.parameters(), 0.01, momentum=0.9),
            "AdamW": lambda t=tuned: torch.optim.AdamW(t.parameters(), 1e-3),
        }[kind]()
        made[kind] = before, train(tuned, optimizer, 30, 900, 1797)
    return made


def stored(weights: Weights, dtype: str) -> Weights:
    """As a release stores them; int8 symmetric per output channel, with the scales."""
    made: Weights = {}
    for name, value in weights.items():
        if dtype != "int8" or value.ndim < 2:
            made[name] = value.astype("float16" if dtype == "float16" else "float32")
            continue
        scale = np.abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True) / 127
        made[name], made[f"{name}_scale"] = np.rint(value / scale).astype(np.int8), scale.astype(np.float32)
    return made


def model_bytes(weights: Weights) -> bytes:
    from onnx import helper, numpy_helper

    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([], "net", [], [], initializer=initializers)
    return bytes(helper.make_model(graph, ir_version=10).SerializeToString(deterministic=True))


def floor_bytes(old: Weights, new: Weights) -> float:
    """Order-0 entropy of the differences, written without the codec's code."""
    return sum(tensor_floor(old[name], new[name]) for name in old) / 8


def tensor_floor(old: Any, new: Any) -> float:
    """Bits of one tensor's differences."""
    if old.dtype.kind == "i":
        return _entropy(new.astype(np.int64) - old)
    bits = [a.view(f"u{a.itemsize}").astype(np.int64).ravel() for a in (old, new)]
    top = 1 << (8 * old.itemsize - 1)
    before, after = (np.where(b & top, top - b, b) for b in bits)
    exponent = np.frexp(old.astype(np.float64).ravel())[1]
    difference = after - before
    below = np.maximum(np.frexp(difference.astype(np.float64))[1] - 3, 0)  # bits under the three highest
    leading = np.sign(difference) * (8 * below + (np.abs(difference) >> below))
    return float(below.sum()) + sum(_entropy(leading[exponent == e]) for e in np.unique(exponent))


def _entropy(values: Any) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def row(kind: str, dtype: str, before: Weights, after: Weights, folder: Path) -> str:
    from compiler.publish.delta import encode_delta
    from runtimes.artifact.delta import apply_delta

    old, new = stored(before, dtype), stored(after, dtype)
    a, b, patch, out = (folder / name for name in ("a.onnx", "b.onnx", "patch", "out.onnx"))
    a.write_bytes(model_bytes(old))
    b.write_bytes(model_bytes(new))
    size = b.stat().st_size
    start = time.perf_counter()
    made = encode_delta(a, b, patch)
    encoded = time.perf_counter()
    apply_delta(a, patch, out, max_result_bytes=size)
    decoded = time.perf_counter()
    floor = floor_bytes(old, new)
    cells = [kind, dtype, f"{size:,}", f"{len(lzma.compress(b.read_bytes(), preset=9)):,}"]
    cells += [
        *peers(a, b, folder),
        f"{made.size_bytes:,}",
        f"{floor:,.0f}",
        f"{100 * (made.size_bytes / floor - 1):+.1f} %",
    ]
    cells += [f"{size / 1e6 / (encoded - start):.1f}", f"{size / 1e6 / (decoded - encoded):.1f}"]
    return "| " + " | ".join(cells) + " |"


def peers(a: Path, b: Path, folder: Path) -> list[str]:
    """Sizes of zstd --patch-from and bsdiff4, or "-" where they are not installed."""
    sizes = ["-", "-"]
    if shutil.which("zstd"):
        made = folder / "zstd"
        subprocess.run(
            ["zstd", "-qq", "-f", "-19", "--patch-from", str(a), str(b), "-o", str(made)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        sizes[0] = f"{made.stat().st_size:,}"
    if find_spec("bsdiff4"):
        import bsdiff4

        sizes[1] = f"{len(bsdiff4.diff(a.read_bytes(), b.read_bytes())):,}"
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128, help="channels; 128 makes 592,000 parameters")
    width = parser.parse_args().width
    print(
        "| fine-tune | stored as | file | xz -9 | zstd | bsdiff4 | patch | floor | over | encode MB/s | decode MB/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, (before, after) in pairs(width).items():
            for dtype in DTYPES:
                print(row(kind, dtype, before, after, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
