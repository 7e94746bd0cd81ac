"""The climb as a whole: it never ends worse than it began, stops when it may, and its result lowers to all formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.errors import DataError
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.gates import answers_gate, saturation_gate, sqnr_gate
from compiler.passes.serialize import to_bytes
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue import ladder
from compiler.quantization.rescue.collapse import COLLAPSED_DB, quantize_or_rescue
from compiler.quantization.rescue.ladder import DEAR, Climb, Goals, climb
from compiler.request import BuildRequest, plan_build
from compiler.verification.metrics import parity
from profiles.schema import Precision
from tests.compiler.quantization.rescue.nets import samples, uneven_net


@pytest.fixture(scope="module")
def whole() -> Climb:
    model = uneven_net(ratio=1000.0)
    return climb(model, samples(model), QuantizeOptions(), Goals(climb_all=True))


def test_a_net_that_int8_breaks_is_rescued(whole: Climb) -> None:
    start = whole.attempts[0].sqnr_db
    assert whole.score.sqnr_db > start + 15, [(a.rung, a.sqnr_db) for a in whole.attempts]
    assert any(a.rung == "equalisation" and a.kept for a in whole.attempts)


def test_the_end_is_the_best_of_what_was_kept_and_every_attempt_is_listed(whole: Climb) -> None:
    kept = [a for a in whole.attempts if a.kept]
    assert [a.sqnr_db for a in kept] == sorted(a.sqnr_db for a in kept)
    assert whole.score.sqnr_db == kept[-1].sqnr_db
    assert {a.rung for a in whole.attempts} >= {"start", "ranges", "bias correction", "second-order rounding"}
    assert all(a.why for a in whole.attempts)
    assert any(a.pareto for a in whole.attempts)


def test_the_same_climb_gives_the_same_bytes(whole: Climb) -> None:
    model = uneven_net(ratio=1000.0)
    again = climb(model, samples(model), QuantizeOptions(), Goals(climb_all=True))
    assert to_bytes(again.best.model) == to_bytes(whole.best.model)


def test_the_climb_stops_where_the_goal_is_met(whole: Climb) -> None:
    model = uneven_net(ratio=1000.0)
    data = samples(model)
    easy = climb(model, data, QuantizeOptions(), Goals(min_sqnr_db=-50.0))
    assert [a.rung for a in easy.attempts] == ["start"]
    assert easy.met
    middle = climb(model, data, QuantizeOptions(), Goals(min_sqnr_db=whole.attempts[0].sqnr_db + 8))
    assert middle.met
    assert 1 < len(middle.attempts) < len(whole.attempts)


def test_what_cannot_be_reached_ends_with_the_best_found() -> None:
    model = uneven_net(ratio=1000.0)
    found = climb(model, samples(model), QuantizeOptions(), Goals(min_sqnr_db=300.0))
    assert not found.met
    assert found.score.sqnr_db == max(a.sqnr_db for a in found.attempts if a.kept)
    assert {s.instead for s in found.sensitivity} == {"int16", "float32"}
    assert found.best.spec.float_nodes  # with a goal asked for, islands were bought


def test_what_does_not_lower_is_not_kept() -> None:
    model = uneven_net(ratio=1000.0)
    found = climb(model, samples(model), QuantizeOptions(), Goals(climb_all=True), lowers=lambda _: "no kernel")
    assert [a.kept for a in found.attempts] == [True] + [False] * (len(found.attempts) - 1)
    assert any(a.why == "no kernel" for a in found.attempts)


@pytest.mark.parametrize("name", ["onnx", "tflite", "coreml"])
def test_islands_lower_to_every_format(name: str, tmp_path: Path) -> None:
    model = uneven_net(ratio=1000.0)
    found = climb(model, samples(model), QuantizeOptions(), Goals(min_sqnr_db=300.0))
    exporter, options = EXPORTERS.get(name), ExportOptions(Precision.INT8)
    assert exporter.check(found.best.model, options) == []
    target = tmp_path / f"net{'.mlpackage' if name == 'coreml' else '.' + name}"
    assert exporter.export(found.best.model, target, options).path.exists()


def _request(folder: Path, count: int = 48, ratio: float = 1000.0) -> BuildRequest:
    model = uneven_net(ratio=ratio)
    onnx.save(ir.to_proto(model), folder / "net.onnx")
    np.savez(folder / "data.npz", image=samples(model, count).feeds["image"])
    return BuildRequest(
        str(folder / "net.onnx"),
        folder / "out",
        calibration=str(folder / "data.npz"),
        precisions=(Precision.INT8,),
    )


def test_a_build_rescues_reports_and_passes_its_gate(tmp_path: Path) -> None:
    from compiler.pipeline import build

    request = _request(tmp_path)
    failed = build(replace(request, min_sqnr=300.0, output=tmp_path / "failed"))
    assert not failed.ok
    assert {g.name for g in failed.gates if not g.ok} == {"min-sqnr"}
    report = build(replace(request, min_sqnr=20.0))
    assert report.ok, [g for g in report.gates if not g.ok]
    document = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    tried = document["quantization"]["ladder"]
    assert tried[0]["rung"] == "start"
    assert tried[0]["sqnr_db"] < 20.0
    section = document["quantization"]
    order = [a["node"] for a in section["activations"]]
    assert set(order) == set(section["sqnr_db"])
    assert order == sorted(order, key=lambda name: int(name.rpartition("_")[2]))  # by depth, as the graph has them
    assert all(sum(a["counts"]) > 0 for a in section["activations"] if a["observed_high"] > a["observed_low"])
    table = document["pareto"]
    assert [row["path"] for row in table] == [a["path"] for a in document["artifacts"]]
    assert all(row["best"] for row in table)  # one per format
    assert all(a["parity"]["snr_db"] >= 20.0 for a in document["artifacts"])
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Rescue ladder" in page
    assert "equalisation" in page


def test_without_goals_a_build_climbs_where_int8_collapses_and_nowhere_else(tmp_path: Path) -> None:
    from compiler.pipeline import build

    (tmp_path / "hard").mkdir()
    (tmp_path / "easy").mkdir()
    hard = build(_request(tmp_path / "hard"))
    easy = build(_request(tmp_path / "easy", ratio=1.0))
    assert hard.quantization is not None and easy.quantization is not None
    assert "ladder" not in easy.quantization
    tried = hard.quantization["ladder"]
    assert tried[0]["sqnr_db"] < COLLAPSED_DB <= max(a["sqnr_db"] for a in tried if a["kept"])
    assert not {a["rung"] for a in tried} & set(DEAR)
    assert all(a.parity.snr_db > COLLAPSED_DB for a in (*hard.artifacts, *easy.artifacts))
    assert not any("collapses" in warning for warning in (*hard.warnings, *easy.warnings))


def test_a_collapse_that_nothing_cheap_mends_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler.pipeline import build

    monkeypatch.setattr(ladder, "RUNGS", ())
    report = build(_request(tmp_path))
    assert report.ok
    said = next(warning for warning in report.warnings if "collapses" in warning)
    assert "dB" in said and "--effort high" in said
    asked = build(replace(_request(tmp_path), min_sqnr=1e-3, output=tmp_path / "asked"))
    assert not any("collapses" in warning for warning in asked.warnings)


def test_plain_int8_stays_where_the_rungs_bring_nothing() -> None:
    model = uneven_net(ratio=1000.0)
    found = quantize_or_rescue(model, samples(model), QuantizeOptions(), lowers=lambda _: "no kernel")
    assert found.climb is not None and found.reference is model
    assert found.quantized.calibration.samples == samples(model).count  # all of them, none held out


def test_the_saturation_gate_names_the_worst_activation(tmp_path: Path) -> None:
    from compiler.pipeline import build

    for limit, ok in ((0.0, False), (0.5, True)):
        report = build(replace(_request(tmp_path, ratio=1.0), max_saturation=limit, output=tmp_path / f"{ok}"))
        gates = [g for g in report.gates if g.name == "max-saturation"]
        assert len(gates) == len(report.artifacts)
        assert all(g.ok is ok for g in gates) and report.ok is ok
    assert report.quantization is not None
    shares = report.quantization["saturated_share"]
    assert max(shares, key=lambda node: shares[node]) in gates[0].reason
    assert saturation_gate("a", {}, 0.0).ok


def test_too_few_samples_for_high_effort_are_refused(tmp_path: Path) -> None:
    from compiler.pipeline import build

    with pytest.raises(DataError, match="too few"):
        build(replace(_request(tmp_path, count=5), effort="high"))
    assert not (tmp_path / "out").exists()


def test_high_effort_needs_our_own_quantizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ladder"):
        plan_build(replace(_request(tmp_path), effort="high", quantizer="neural-compressor"))


def test_gates_say_no_with_a_reason() -> None:
    plain = np.array([[1.0, 2.0], [3.0, 1.0]])
    found = parity({"y": plain[:, ::-1]}, {"y": plain})
    assert not answers_gate("a", found, 0.5).ok
    assert answers_gate("a", parity({"y": plain}, {"y": plain}), 1.0).ok
    assert not sqnr_gate("a", found, 10.0).ok
    single = parity({"y": plain[:, :1]}, {"y": plain[:, :1]})
    assert not answers_gate("a", single, 0.5).ok


def test_unasked_islands_must_be_worth_their_conversions(whole: Climb) -> None:
    best = -np.inf
    for attempt in whole.attempts:
        if attempt.rung == "float islands" and attempt.kept:
            assert attempt.sqnr_db >= best + 1.0
        best = max(best, attempt.sqnr_db) if attempt.kept else best
