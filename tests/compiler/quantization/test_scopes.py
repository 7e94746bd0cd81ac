"""Scopes and recipes: what they choose, what they refuse, and that builds and dry runs follow them."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.calibration.observers import OBSERVERS
from compiler.dry_run import dry_run
from compiler.errors import DataError
from compiler.quantization.params import WEIGHT_METHODS
from compiler.quantization.scopes import nodes_in, values_in
from compiler.quantization.spec import NodePrecision, QuantizationSpec, read_spec
from compiler.request import BuildRequest, plan_build
from profiles.errors import ProfileError
from profiles.recipe import load_recipe, recipe_names
from profiles.schema import Precision
from tests.compiler.hub_models import hub
from tests.compiler.quantization.rescue.nets import samples, uneven_net

NET = "net (float[1, 4] x) => (float[1, 4] y) { a = Relu (x)  b = Sigmoid (a)  c = Relu (b)  y = Add (c, a) }"


def test_scopes_are_whole_names_or_types() -> None:
    model = hub(NET)
    assert nodes_in(model, ["Relu_0"]) == ("Relu_0",)
    assert nodes_in(model, ["Relu.*", "op:Add"]) == ("Add_3", "Relu_0", "Relu_2")
    assert values_in(model, ["a", "op:Sigmoid", "Add_3"]) == ("a", "b", "y")
    assert nodes_in(model, []) == ()


@pytest.mark.parametrize(
    ("scope", "words"), [("Relu", "Nothing"), ("op:Conv", "Nothing"), ("(", "no regular expression")]
)
def test_scopes_without_anything_in_them_are_refused(scope: str, words: str) -> None:
    for choose in (nodes_in, values_in):
        with pytest.raises(DataError, match=words) as caught:
            choose(hub(NET), [scope])
        assert caught.value.remedy


def test_a_near_miss_is_named() -> None:
    with pytest.raises(DataError) as caught:
        nodes_in(hub(NET), ["Relu_9"])
    assert "Relu_0" in caught.value.remedy


def test_every_shipped_recipe_names_what_exists() -> None:
    assert {"fast", "thorough", "detector", "transformer"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.why.endswith(".")
        assert recipe.quantization.observer in (None, *OBSERVERS.names())
        assert recipe.quantization.weights in (None, *WEIGHT_METHODS.names())


def test_bad_recipes_are_refused_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="Did you mean 'thorough'"):
        load_recipe("thorogh")
    for content, words in (("x = ", "not TOML"), ("name = 'a'", "title")):
        (tmp_path / "r.toml").write_text(content)
        with pytest.raises(ProfileError, match=words):
            load_recipe(str(tmp_path / "r.toml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scopes")
    model = uneven_net(ratio=3.0)
    onnx.save(ir.to_proto(model), place / "net.onnx")
    np.savez(place / "data.npz", image=np.asarray(samples(model).feeds["image"]))
    (place / "own.toml").write_text(
        'name = "own"\ntitle = "t"\nwhy = "w."\n[quantization]\nobserver = "percentile"\nkeep_float = ["op:Gemm"]\n'
    )
    return place


def request(folder: Path, **options: object) -> BuildRequest:
    return BuildRequest(
        str(folder / "net.onnx"),
        folder / "out",
        calibration=str(folder / "data.npz"),
        precisions=(Precision.INT8,),
        **options,  # type: ignore[arg-type]
    )


def planned(folder: Path, **options: object) -> QuantizationSpec:
    _, spec = dry_run(request(folder, **options))
    assert spec is not None
    assert not (folder / "out").exists()
    return spec


def test_a_dry_run_follows_scopes_and_recipe_and_options_come_first(folder: Path) -> None:
    spec = planned(folder, recipe=str(folder / "own.toml"), int16=("a6",))
    assert spec.provenance["calibration"]["observer"] == "percentile"
    assert spec.nodes["Gemm_8"].precision is NodePrecision.FLOAT32
    assert spec.activations["a6"].dtype == "int16"
    again = planned(folder, recipe=str(folder / "own.toml"), observer="min-max", keep_float=("Conv_0",))
    assert again.provenance["calibration"]["observer"] == "min-max"
    assert {n for n, d in again.nodes.items() if d.precision is NodePrecision.FLOAT32} >= {"Gemm_8", "Conv_0"}


def test_an_output_cannot_be_wide(folder: Path) -> None:
    with pytest.raises(DataError, match="output of the model"):
        planned(folder, int16=("logits",))


def test_a_build_performs_what_the_dry_run_planned(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from compiler.pipeline import build
    from profiles.schema import Format

    wanted = request(folder, recipe=str(folder / "own.toml"), int16=("a6",), formats=(Format.ONNX,))
    _, spec = dry_run(wanted)
    report = build(replace(wanted, output=tmp_path / "out"))
    assert spec is not None and report.quantization is not None
    assert report.quantization["spec_sha256"] == spec.sha256


def test_the_recipe_asks_for_the_ladder(folder: Path) -> None:
    wanted = request(folder, recipe="thorough")
    assert plan_build(wanted).effort(wanted) == "high"
    with pytest.raises(DataError, match="ladder"):
        plan_build(request(folder, recipe="thorough", quantizer="neural-compressor"))


def test_the_command_prints_the_plan(folder: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "edgewright"
    command = [
        str(script),
        "build",
        str(folder / "net.onnx"),
        "-o",
        str(folder / "out"),
        "--precision",
        "int8",
        "--no-cache",
    ]
    command += ["--calibration", str(folder / "data.npz"), "--dry-run", "--keep-float", "Conv_0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    spec = read_spec(json.dumps(document["quantization"]).encode())
    assert spec.nodes["Conv_0"].precision is NodePrecision.FLOAT32
    lines = str(spec).splitlines()
    assert any("Conv_0: asked for by keep_float" in line for line in lines)
    assert sum(name in line for name in spec.activations for line in lines) >= len(spec.activations)
