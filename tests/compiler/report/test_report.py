from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compiler.concluding import set_aside
from compiler.errors import Refusal
from compiler.gates import Gate
from compiler.report.evidence_plots import rungs_plot
from compiler.report.figure import Plot, short
from compiler.report.html import render
from compiler.report.plots import all_plots, p_value
from compiler.report.schema import ArtifactReport, Report, choices
from compiler.report.text import summary
from compiler.report.write import write_report
from compiler.verification.integer_kernels import FloatNode, Kernels
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
    plots = all_plots(report)
    assert page.tags.count("svg") == len(plots["artifacts"]) + len(plots["quantization"]) == 5


def attempt(rung: str, sqnr_db: float, kept: bool, **more: object) -> dict[str, object]:
    return {
        "rung": rung,
        "detail": f"how {rung} went",
        "sqnr_db": sqnr_db,
        "agreement": 0.98,
        "weight_bytes": 2048,
        "float_nodes": 0,
        "seconds": 1.0,
        "kept": kept,
        "why": "+1.0 dB",
        "pareto": kept,
    } | more


@pytest.fixture
def told(report: Report) -> Report:
    """With everything that INT8's section may hold."""
    section = {
        "scheme": "int8",
        "sqnr_db": {"a": 40.0, "b": 12.0, "c": None},
        "first_below_20_db": "b",
        "worst_node": "b (Conv): 12.0 dB",
        "held_out_samples": 64,
        "ladder": [
            attempt("start", 12.0, True),
            attempt("bias correction", 11.0, False),
            attempt("islands", 30.0, True),
        ],
        "sensitivity": [{"node": "b", "op_type": "Conv", "gain_db": 9.5, "gain_power": 0.1, "cost": 1200}],
        "activations": [
            {
                "node": "b",
                "sqnr_db": 12.0,
                "low": -0.5,
                "high": 2.0,
                "observed_low": -1.0,
                "observed_high": 3.0,
                "counts": [5, 0, 90, 3],
            }
        ],
        "saturated_share": {"b": 0.021},
        "nodes_float": {"d": "Softmax: asked for"},
    }
    islands = (FloatNode("d", "Softmax", "planned in float"),)
    kernels = Kernels({"QLinearConv": 9}, 2, islands, 2)
    artifacts = (replace(report.artifacts[1], kernels=kernels), *report.artifacts)
    return replace(report, quantization=section, artifacts=artifacts)


def every_plot(report: Report) -> list[Plot]:
    return [plot for section in all_plots(report).values() for plot in section]


def test_plots_are_well_formed_and_repeat_to_the_byte(told: Report) -> None:
    first, second = every_plot(told), every_plot(told)
    assert first == second
    assert len(first) == 9
    for plot in first:
        drawn = ET.fromstring(plot.svg)
        assert drawn.tag.endswith("svg")
        assert (drawn.get("role"), drawn.get("aria-label")) == ("img", plot.about)


def test_plots_follow_the_pages_text_colour(told: Report) -> None:
    """Black would vanish on a dark page, and matplotlib's white background would glare on it."""
    for plot in every_plot(told):
        assert "currentColor" in plot.svg
        assert not re.findall(r"#000000|#010203|fill: ?#ffffff", plot.svg)


def test_no_id_occurs_twice_on_the_page_with_another_meaning(told: Report) -> None:
    """Ids that figures share by content are drawn alike; others would make one figure's clip another's."""
    meaning: dict[str, str] = {}
    for plot in every_plot(told):
        for identifier, body in re.findall(r'<(?:clipPath|path) id="([^"]+)"(.*?)</?(?:clipPath|defs)', plot.svg, re.S):
            assert meaning.setdefault(identifier, body) == body


def test_the_page_tells_where_int8_goes_wrong(told: Report) -> None:
    html = render(told)
    assert "The first tensor that goes wrong</strong> is the output of <code>b</code>" in html
    assert "QLinearConv 9" in html
    assert "planned in float" in html
    assert "prefers-color-scheme: dark" in html
    sensitive = html.split("Sensitivity of 1 node,")[1]
    assert "+9.50 dB" in sensitive


def test_a_section_without_a_ladder_or_evidence_still_renders(told: Report) -> None:
    html = render(replace(told, quantization={"scheme": "int8", "sqnr_db": {}}))
    assert "Rescue ladder" not in html


@pytest.mark.parametrize(
    ("p", "text"), ((0.0, "p < 0.001"), (0.0312, "p = 0.031"), (0.2266, "p = 0.23"), (1.0, "p = 1.00"))
)
def test_p_values_are_rounded_where_it_matters(p: float, text: str) -> None:
    assert p_value(p) == text


def test_a_long_name_keeps_its_end() -> None:
    assert short("a" * 20 + "/" + "b" * 30) == "…" + "aa/" + "b" * 30
    assert short("conv") == "conv"


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


def test_the_page_opens_with_what_rescue_brought_and_the_plot_has_a_line_per_rung(report: Report) -> None:
    ladder = [
        attempt("start", 1.0, True),
        attempt("ranges", 2.0, True),
        attempt("ranges", 0.5, False),
        attempt("equalisation", 27.5, True),
        attempt("islands", 3.0, False),
    ]
    section = {"held_out_samples": 64, "ladder": ladder}
    page = render(replace(report, quantization=section))
    assert "Plain INT8 left 1.0 dB" in page and "Rescue brought 27.5 dB, by ranges, equalisation." in page
    said = rungs_plot(ladder).about
    assert [one.split(":")[0] for one in said.split("; ")] == [
        "start 1.0 dB, kept",
        "ranges",
        "equalisation",
        "islands",
    ]
    nothing = render(replace(report, quantization={**section, "ladder": [ladder[0], ladder[2]]}))
    assert "nothing brought more than plain INT8: 1.0 dB" in nothing
