"""`python -m benchmarks.ladder`: what each rung of the INT8 rescue ladder is worth, on a net made hard and on MLPerf Tiny's kws."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

REALDATA = Path(__file__).resolve().parents[2] / "shared" / "realdata"


def main() -> None:
    from tests.compiler.quantization.test_ladder import _dataset, _net, _samples

    for spread in (1.0, 300.0):
        model = _net(spread)
        _show(f"depthwise channels with ranges 1:{spread:g}", model, _dataset(model, _samples(64, 0)))
    if REALDATA.is_dir():
        from tests.compiler.quantization.test_real_models import dataset_for, kws

        model, features, _ = kws(REALDATA)
        _show("kws, 200 samples", model, dataset_for(model, np.asarray(features[:200])))


def _show(title: str, model: object, dataset: object) -> None:
    from compiler.quantization.engine import quantize
    from compiler.quantization.ladder import climb
    from compiler.quantization.plan import QuantizeOptions

    start = time.perf_counter()
    climbed = climb(model, dataset, QuantizeOptions(), quantize)  # type: ignore[arg-type]
    print(f"\n{title}: {climbed.held_out} samples held out, {time.perf_counter() - start:.1f} s")
    for rung in climbed.rungs:
        agreement = "-" if rung.agreement is None else f"{rung.agreement:.1%}"
        kept = "kept" if rung.kept else ""
        print(
            f"  {rung.name:26} {rung.sqnr_db:6.1f} dB  {agreement:>7}  float {rung.float_share:5.1%}  {kept:5} {rung.note}"
        )


if __name__ == "__main__":
    main()
