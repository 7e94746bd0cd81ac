"""`python -m benchmarks.quantization.mobilenet`: time and memory of calibrating and quantizing a full MobileNetV2 at 224 pixels.

timm's mobilenetv2_100 with seeded random weights and random batch norms, 256 random images with the smooth look of photographs in
an .npz on disk. Each count of images runs in a process of its own, which reports its seconds by stage and its peak resident memory;
memory must not grow with the count. `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 224
COUNTS = (32, 256)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization.mobilenet", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of images, one run each")
    parser.add_argument("--net", default="mobilenetv2_100", help="a timm architecture")
    parser.add_argument("--observer", default="mse")
    parser.add_argument("--profile", action="store_true", help="print the functions that take the time")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return child(options.child, options.observer, options.profile)
    print("| images | load s | calibrate and quantize s | of it CPU s | MiB before | peak MiB | spec |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.net)
        for count in options.counts:
            write_images(folder / "images.npz", count)
            print(measured(folder, count, options.observer, options.profile), flush=True)
    return 0


def prepare(folder: Path, net: str) -> None:
    """The cleaned float hub as ``hub.onnx``."""
    import torch

    from compiler.importers import import_model
    from compiler.importers.base import ImportOptions
    from compiler.passes import clean_up
    from compiler.passes.serialize import to_bytes
    from tests.timm_models import create

    path = folder / "net.onnx"
    torch.onnx.export(create(net), (torch.zeros(1, 3, SIDE, SIDE),), str(path), dynamo=False, verbose=False)
    hub = clean_up(import_model(str(path), ImportOptions(batch=1)).model)
    (folder / "hub.onnx").write_bytes(to_bytes(hub))


def write_images(path: Path, count: int) -> None:
    """[count, 3, SIDE, SIDE] float32: noise at seven pixels a cell, enlarged, plus a little per pixel."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((count, 3, SIDE // 7, SIDE // 7)).astype(np.float32)
    images = np.kron(coarse, np.ones((7, 7), np.float32))
    images += 0.2 * rng.standard_normal(images.shape, np.float32)
    np.savez(path, image=images)


def measured(folder: Path, count: int, observer: str, profile: bool) -> str:
    command = [sys.executable, "-m", __spec__.name, "--child", str(folder), "--observer", observer]
    done = subprocess.run(
        [*command, *(["--profile"] if profile else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    *report, last = done.stdout.strip().splitlines()
    if report:
        print("\n".join(report), file=sys.stderr)
    found = json.loads(last)
    return (
        f"| {count} | {found['load_s']:.1f} | {found['quantize_s']:.1f} | {found['cpu_s']:.1f} | {found['before_mib']:.0f} "
        f"| {found['peak_mib']:.0f} | {found['spec']} |"
    )


def child(folder: Path, observer: str, profile: bool) -> int:
    import onnxruntime  # noqa: F401  (its own memory belongs to "before")

    from compiler.calibration.data import load_dataset
    from compiler.hubfacts import hub_inputs
    from compiler.passes.serialize import from_bytes
    from compiler.quantization.engine import quantize
    from compiler.quantization.plan import QuantizeOptions

    hub = from_bytes((folder / "hub.onnx").read_bytes())
    before = _peak_mib()
    watch = cProfile.Profile()
    start = time.perf_counter()
    data = load_dataset(str(folder / "images.npz"), hub_inputs(hub))
    loaded, cpu = time.perf_counter(), time.process_time()
    if profile:
        watch.enable()
    found = quantize(hub, data, QuantizeOptions(observer=observer))
    done = time.perf_counter()
    if profile:
        watch.disable()
        pstats.Stats(watch).sort_stats("tottime").print_stats(18)
    print(
        json.dumps(
            {
                "load_s": loaded - start,
                "quantize_s": done - loaded,
                "cpu_s": time.process_time() - cpu,
                "before_mib": before,
                "peak_mib": _peak_mib(),
                "spec": found.spec.sha256[:12],
            }
        )
    )
    return 0


def _peak_mib() -> float:
    """VmHWM: unlike getrusage's figure it begins anew with the process."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


if __name__ == "__main__":
    sys.exit(main())
