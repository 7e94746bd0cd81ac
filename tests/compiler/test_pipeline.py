"""The whole build on a small net: bytes, gates, what is left behind when something goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import DataError, OutputExists, UnsupportedModel
from compiler.request import BuildRequest, plan_build
from compiler.variants import DEFAULT_PRECISIONS
from profiles.catalog import DEVICES
from profiles.schema import Format, Precision
from runtimes.artifact.files import sha256_tree
from runtimes.artifact.manifest import read_manifest
from runtimes.errors import StorageError
from tests.compiler.small_net import NET, UNSUPPORTED, save_net


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    folder = tmp_path_factory.mktemp("net")
    save_net(folder / "net.onnx")
    rng = np.random.default_rng(4)
    images = rng.random((64, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=images)
    np.savez(folder / "labelled.npz", image=images, labels=rng.integers(0, 4, 64))
    return BuildRequest(str(folder / "net.onnx"), folder / "out", calibration=str(folder / "calibration.npz"))


@pytest.fixture(scope="module")
def built(request_: BuildRequest) -> Path:
    from compiler.pipeline import build

    report = build(request_)
    assert report.ok, [g for g in report.gates if not g.ok]
    return request_.output


def test_every_artifact_was_executed_and_agrees(built: Path) -> None:
    report = json.loads((built / "report.json").read_text("utf-8"))
    assert {(a["format"], a["precision"]) for a in report["artifacts"]} == {
        (f.value, p.value) for f in Format for p in DEFAULT_PRECISIONS
    }
    for artifact in report["artifacts"]:
        assert artifact["sha256"] == sha256_tree(built / artifact["path"])
        assert artifact["parity"]["samples"] == 64
        if artifact["precision"] == "fp32":
            assert artifact["parity"]["relative_error"] < 1e-5
    assert {a["evidence"] for a in report["artifacts"] if a["format"] == "coreml"} <= {
        "reference-verified",
        "device-verified",
    }
    assert len(report["agreement"]) == 3
    assert all(pair["share_within_two"] >= 0.99 for pair in report["agreement"])


def test_the_draft_names_what_lies_there(built: Path) -> None:
    manifest = read_manifest((built / "manifest.draft.json").read_bytes())
    assert manifest.release == "draft"
    assert all((built / a.path).exists() for a in manifest.artifacts)
    quality = json.loads((built / manifest.documents["quality"].path).read_bytes())
    assert {a["path"] for a in quality["artifacts"]} == {a.path for a in manifest.artifacts}


def test_the_same_input_gives_the_same_bytes(built: Path, request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build
    from compiler.publish.delta.encode import encode_delta

    build(replace(request_, output=tmp_path / "again"))
    save_net(tmp_path / "net.onnx", nudge=0.01)
    build(replace(request_, source=str(tmp_path / "net.onnx"), output=tmp_path / "tuned"))
    artifacts = sorted(built.glob("net-*"))
    assert len(artifacts) == 9
    for path in [*artifacts, built / "manifest.draft.json", built / "selftest.npz"]:
        assert sha256_tree(tmp_path / "again" / path.name) == sha256_tree(path), path.name
    for path in artifacts:
        if path.is_file():
            for name, base in (("one", built), ("two", tmp_path / "again")):
                encode_delta(base / path.name, tmp_path / "tuned" / path.name, tmp_path / name)
            assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes(), path.name


def test_a_failed_gate_sets_the_artifacts_aside(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    labels = request_.calibration.replace("calibration", "labelled") if request_.calibration else None
    profile = tmp_path / "tiny.toml"
    text = (DEVICES / "android-arm64.toml").read_text("utf-8").replace('name = "android-arm64"', 'name = "tiny"')
    profile.write_text(text.replace("size_bytes = 33_554_432", "size_bytes = 1024"), "utf-8")
    small = replace(request_, profiles=(str(profile),), precisions=(Precision.FP32,), formats=(Format.TFLITE,))
    report = build(replace(small, output=tmp_path / "out", evaluate=labels))
    assert not report.ok
    assert [g.name for a in report.artifacts for g in a.gates if not g.ok] == ["size"]
    assert (tmp_path / "out" / "rejected" / "net-fp32.tflite").is_file()
    assert not (tmp_path / "out" / "manifest.draft.json").exists()
    document = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert document["artifacts"][0]["path"] == "rejected/net-fp32.tflite"
    assert document["ok"] is False


def test_an_existing_folder_needs_force(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    small = replace(request_, output=out, formats=(Format.ONNX,), precisions=(Precision.FP32,))
    with pytest.raises(OutputExists):
        build(small)
    assert (out / "mine.txt").read_text() == "keep"
    assert build(replace(small, force=True)).ok
    assert not (out / "mine.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


UNBATCHED = NET.replace("logits = ", "m = ReduceMax <keepdims = 0> (d)\n  logits = ").replace(
    "(float[N, 4] logits)", "(float[N, 4] logits, float m)"
)


def test_all_refusals_come_at_once_and_nothing_is_written(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    save_net(tmp_path / "bad.onnx", UNSUPPORTED)
    request = replace(request_, source=str(tmp_path / "bad.onnx"), output=tmp_path / "out")
    with pytest.raises(UnsupportedModel) as caught:
        build(request)
    assert {r.where for r in caught.value.refusals} >= {"tflite", "coreml"}
    assert any(r.op_type == "RandomNormalLike" for r in caught.value.refusals)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


def test_an_output_without_batch_axis_is_compared_sample_by_sample(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    save_net(tmp_path / "unbatched.onnx", UNBATCHED)
    small = replace(request_, source=str(tmp_path / "unbatched.onnx"), precisions=(Precision.FP32,))
    report = build(replace(small, output=tmp_path / "out"))
    assert report.ok
    assert all(a.parity.samples == 64 for a in report.artifacts)


@pytest.mark.parametrize("shape", [(64, 3, 8, 9), (64, 8, 8, 3)])
def test_a_wrong_calibration_shape_is_named(request_: BuildRequest, tmp_path: Path, shape: tuple[int, ...]) -> None:
    from compiler.pipeline import build

    np.savez(tmp_path / "wrong.npz", image=np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"3.*8.*8"):
        build(replace(request_, calibration=str(tmp_path / "wrong.npz"), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_a_storage_error(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError):
        build(replace(request_, output=tmp_path / "file" / "out", formats=(Format.ONNX,), precisions=(Precision.FP32,)))


def test_pruning_is_reported_and_judged_against_the_pruned_hub(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    save_net(tmp_path / "wide.onnx", width=32)
    small = replace(request_, source=str(tmp_path / "wide.onnx"), formats=(Format.ONNX,), precisions=(Precision.FP32,))
    report = build(replace(small, output=tmp_path / "out", prune=0.25))
    assert report.ok
    assert report.prune is not None
    assert report.artifacts[0].lowering.relative_error < 1e-5 < report.artifacts[0].parity.relative_error


def test_high_effort_and_int8_gates(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    small = replace(request_, formats=(Format.ONNX,), precisions=(Precision.INT8,), effort="high")
    report = build(replace(small, output=tmp_path / "out", min_sqnr=10.0, min_agreement=0.5))
    assert report.ok and report.quantization is not None
    rungs = [attempt["rung"] for attempt in report.quantization["ladder"]]
    assert len(rungs) > 2 and report.quantization["ladder"][0]["kept"]
    assert {"min-sqnr", "min-agreement"} <= {gate.name for gate in report.gates}
    assert "Rescue ladder" in (tmp_path / "out" / "report.html").read_text("utf-8")
    strict = build(replace(small, output=tmp_path / "strict", min_sqnr=90.0))
    assert [gate.name for gate in strict.gates if not gate.ok] == ["min-sqnr"]


def test_weights_only_needs_no_data_and_updates_are_predicted(
    request_: BuildRequest, built: Path, tmp_path: Path
) -> None:
    from compiler.pipeline import build

    weights = replace(
        request_,
        calibration=None,
        output=tmp_path / "weights",
        precisions=(Precision.INT8_WEIGHTS, Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS),
    )
    report = build(weights)
    assert report.ok, [g for g in report.gates if not g.ok]
    assert len(report.artifacts) == 8
    assert set(report.schemes) == {"int8-weights", "int8-dynamic", "int4-weights"}
    again = build(replace(request_, output=tmp_path / "again", previous=str(built)))
    assert again.ok
    assert {u.artifact for u in again.updates} == {a.path for a in again.artifacts}
    assert all(u.patch_bytes < 400 for u in again.updates)
    assert again.quantization is not None
    assert again.quantization["sticky"]["chosen"]["kept_codes"] == 1.0
    assert "Updates from the previous release" in (tmp_path / "again" / "report.html").read_text("utf-8")


def test_compressed_weights_are_the_same_numbers_in_every_format(request_: BuildRequest, tmp_path: Path) -> None:
    from compiler.pipeline import build

    save_net(tmp_path / "wide.onnx", width=64)
    wide = replace(
        request_,
        source=str(tmp_path / "wide.onnx"),
        calibration=None,
        precisions=(Precision.PALETTIZED4, Precision.SPARSE_INT8),
        palette_table="int8",
        sparsity=0.25,
        coreml=("compute=fp16",),
        output=tmp_path / "out",
    )
    report = build(wide)
    assert report.ok, [g for g in report.gates if not g.ok]
    assert len(report.artifacts) == 6
    size = {(a.format, a.precision): a.size_bytes for a in report.artifacts}
    assert size["coreml", "palettized4"] < size["onnx", "palettized4"]
    lost = {(a.format, a.precision): a.parity.relative_error for a in report.artifacts}
    assert abs(lost["onnx", "palettized4"] - lost["tflite", "palettized4"]) < 1e-5
    assert set(report.schemes) == {"palettized4", "sparse-int8"}


def test_core_ml_takes_pictures_of_several_sizes_and_answers_by_class(request_: BuildRequest, tmp_path: Path) -> None:
    """Random pixels where there is no data: every artifact is verified on what pictures can be, and at both ends of the sizes."""
    from compiler.pipeline import build

    declaration = 'kind = "image"\nwidth = 8\nheight = 8\nmean = [0.5]\nstd = [0.25]\n'
    (tmp_path / "pictures.toml").write_text(declaration)
    asked = replace(
        request_,
        name="free",
        calibration=None,
        preprocess=tmp_path / "pictures.toml",
        precisions=(Precision.FP32, Precision.FP16),
        formats=(Format.COREML,),
        labels=("a", "b", "c", "d"),
        coreml=("images=true", "classifier=true", "flexible.image=1x3x8..20x8..20"),
        output=tmp_path / "out",
    )
    report = build(asked)
    assert report.ok, [g for g in report.gates if not g.ok]
    assert [g.name for g in report.gates].count("sizes") == 2
    model = (tmp_path / "out" / "free-fp32.mlpackage" / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    assert b"classLabel_probs" in model and b"edgewright.images" in model


@pytest.mark.parametrize(
    ("options", "text"),
    [(("compute",), "no KEY=VALUE"), (("compute=fp64",), "compute"), (("colour=red",), "colour"), (("flexible.x=3..1",), "range")],
)  # fmt: skip
def test_core_ml_options_are_checked_before_anything_is_loaded(
    request_: BuildRequest, options: tuple[str, ...], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        plan_build(replace(request_, source="missing.onnx", coreml=options))


def test_metadata_and_classes_are_in_every_artifact(request_: BuildRequest, tmp_path: Path) -> None:
    import onnx
    from ai_edge_litert import schema_py_generated as schema

    from compiler.pipeline import build

    names = ("a", "b", "c", "d")
    small = replace(request_, precisions=(Precision.FP32,), labels=names, metadata=("author=Jo Doe", "version=1.2"))
    assert build(replace(small, output=tmp_path / "out")).ok
    props = {p.key: p.value for p in onnx.load(tmp_path / "out" / "net-fp32.onnx").metadata_props}
    assert (props["author"], props["edgewright.labels"]) == ("Jo Doe", "a\nb\nc\nd")
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "out" / "net-fp32.tflite").read_bytes(), 0)
    assert {m.name.decode() for m in model.metadata} >= {"author", "version", "edgewright.labels"}
    package = (tmp_path / "out" / "net-fp32.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes()
    assert b"Jo Doe" in package and b'{"labels": ["a", "b", "c", "d"]}' in package
    with pytest.raises(DataError, match="no KEY=VALUE"):
        build(replace(small, output=tmp_path / "no", metadata=("author",)))
