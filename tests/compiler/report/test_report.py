from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compiler.concluding import set_aside
from compiler.errors import Refusal
from compiler.gates import Gate
from compiler.report.html import render
from compiler.report.plots import all_plots
from compiler.report.schema import ArtifactReport, Report, choices
from compiler.report.text import summary
from compiler.report.write import write_report
from compiler.verification.metrics import Accuracy, Flips, Parity, StepAgreement


def _artifact(fmt: str, precision: str, error: float = 1e-3, ok: bool = True) -> ArtifactReport:
    parity = Parity(error, error, 40.0 if error else math.inf, 0.99, "logits", math.isfinite(error), 100)
    return ArtifactReport(
        path=f"net-{precision}.{fmt}",
        format=fmt,
        precision=precision,
        profiles=("board",),
        runtime="litert",
        runtime_version="2",
        evidence="executed",
        size_bytes=2048,
        sha256="0" * 64,
        parity=parity,
        lowering=parity,
        accuracy=Accuracy(0.9, 0.85, 0.95, 90, 100),
        flips=Flips(2, 1, 1.0, 100),
        latency_ms=1.5,
        peak_memory_bytes=1 << 20,
        notes=("one transpose left at <input>",),
        refusals=(Refusal("n", "Op", "no kernel", fmt),),
        gates=(Gate("finite", f"net-{precision}.{fmt}", ok, 0.0, 0.0, "as found"),),
    )


@pytest.fixture
def report() -> Report:
    artifacts = (_artifact("onnx", "fp32", 0.0), _artifact("tflite", "int8"), _artifact("coreml", "fp16"))
    return Report(
        model="net <b>",
        source={"kind": "onnx", "location": "net.onnx", "sha256": "1" * 64},
        tools={"onnx": "1"},
        host={"cpu": "c"},
        request={},
        hub={"opset": 21, "nodes": 3, "parameters": 1000, "operators": {"Conv": 2}, "inputs": [], "outputs": []},
        data={"calibration": {"digest": "2" * 64, "samples": 10, "labels": False}},
        truth="10 samples",
        source_accuracy=Accuracy(0.91, 0.86, 0.95, 91, 100),
        prune=None,
        quantization={"scheme": "int8", "sqnr_db": {"a": 40.0, "b": 21.5, "c": None}},
        artifacts=artifacts,
        agreement=(StepAgreement("a", "b", 1.0, 0.9, 1.0, 1.0),),
        warnings=("few samples",),
    )


def test_the_document_is_plain_json(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["schema"] == "edgewright.report/1"
    assert document["ok"] is True
    assert document["artifacts"][0]["parity"]["snr_db"] is None  # equal tensors: infinite
    assert document["artifacts"][1]["flips"]["drop_points"] == 1.0
    assert document["gates"][0]["name"] == "finite"


def test_one_failed_gate_fails_the_report(report: Report) -> None:
    failed = replace(report, artifacts=(*report.artifacts, _artifact("onnx", "int8", ok=False)))
    assert not failed.ok
    assert "as found" in summary(failed, Path("out"))
    assert "FAILED" in summary(failed, Path("out"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]


def test_the_page_stands_alone_and_escapes_names(report: Report) -> None:
    html = render(report)
    page = _Page()
    page.feed(html)
    assert "net &lt;b&gt;" in html
    assert "script" not in page.tags
    assert page.links == []
    assert page.tags.count("svg") == len(all_plots(report)) == 4


def test_plots_are_well_formed_and_repeat_to_the_byte(report: Report) -> None:
    first, second = all_plots(report), all_plots(report)
    assert first == second
    for _, svg in first:
        assert ET.fromstring(svg).tag.endswith("svg")


def test_nan_outputs_still_make_a_report(report: Report, tmp_path: Path) -> None:
    broken = replace(report, artifacts=(_artifact("tflite", "int8", math.inf, ok=False),))
    write_report(broken, tmp_path)
    document = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert document["artifacts"][0]["parity"]["relative_error"] is None
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_failed_artifacts_are_set_aside(report: Report, tmp_path: Path) -> None:
    for artifact in report.artifacts:
        (tmp_path / artifact.path).write_bytes(b"x")
    moved = set_aside(tmp_path, report.artifacts)
    assert [a.path for a in moved] == [f"rejected/{a.path}" for a in report.artifacts]
    assert all((tmp_path / a.path).is_file() for a in moved)
    assert not list(tmp_path.glob("*.onnx"))


def test_the_pareto_table_names_what_nothing_beats_in_its_format() -> None:
    small, large = _artifact("onnx", "int8"), replace(_artifact("onnx", "fp32", 0.0), size_bytes=8192, latency_ms=3.0)
    poor = replace(_artifact("onnx", "int4"), size_bytes=4096)  # larger than small and no closer
    other = replace(_artifact("tflite", "int8"), size_bytes=9999, latency_ms=9.0)
    table = choices((small, large, poor, other))
    assert [(row.path, row.best) for row in table] == [
        ("net-int8.onnx", True),
        ("net-fp32.onnx", True),
        ("net-int4.onnx", False),
        ("net-int8.tflite", True),
    ]
    assert table[0].accuracy == 0.9


def test_the_summary_says_where_int8_loses_and_what_rescue_brought(report: Report) -> None:
    attempts = [
        {"rung": "start", "sqnr_db": 10.0, "kept": True},
        {"rung": "ranges", "sqnr_db": 9.0, "kept": False},
        {"rung": "equalisation", "sqnr_db": 31.5, "kept": True},
    ]
    section = {"worst_node": "n (Conv): 9.0 dB", "first_below_20_db": "m", "held_out_samples": 64, "ladder": attempts}
    text = summary(replace(report, quantization=section), Path("out"))
    assert "most is lost at n (Conv): 9.0 dB" in text and "first activation below 20 dB is m" in text
    assert "on 64 held-out samples: start 10.0 dB, equalisation 31.5 dB" in text
    assert "-2 +1 (p 1.00)" in text
