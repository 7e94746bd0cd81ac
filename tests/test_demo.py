"""The README's story, end to end on a reduced size: real net, real data, the installed console scripts, a running agent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "demo", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for release in (1, 2):
        report = json.loads((out / f"build-{release}" / "report.json").read_text("utf-8"))
        assert report["ok"]
        assert {(a["format"], a["precision"]) for a in report["artifacts"]} >= {
            ("onnx", "int8"),
            ("tflite", "int8"),
            ("coreml", "int8"),
        }
        assert (out / f"build-{release}" / "report.html").stat().st_size > 10_000
    table = done.stdout[done.stdout.rindex("trained (PyTorch)") :]
    assert re.search(r"answered offline +\d+/360 right", table)
    assert re.search(r"requests during both updates +\d+ answered, 0 failed", table)
    assert re.search(r"versions that answered +1 then 2", table)
    assert re.search(r"broken release 3 \(NaN\) +rejected", table)
    assert re.search(r"telemetry over OTLP/HTTP +[1-9]\d* data points", table)
