"""Real measurements of a tiny model; remote transports through stand-ins for ssh, scp and adb that run the same commands here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import onnx.parser
import pytest

from hw_benchmarks.bench import BenchOptions, compare_results, run
from hw_benchmarks.errors import BenchError, MeasurementFailed, ResultsMismatch, TargetUnreachable
from hw_benchmarks.plots import latency_plot
from hw_benchmarks.transports import open_transport
from hw_benchmarks.transports.base import read_answer, write_bundle
from profiles.errors import RegistryMiss

QUICK = BenchOptions(duration_s=0.05, min_queries=20, warm_up=2, repeats=2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (
        '<ir_version: 10, opset_import: ["": 21]> g (float[1, 8] x) => (float[1, 8] y) { t = Add (x, x) y = Tanh (t) }'
    )
    path = tmp_path_factory.mktemp("bench") / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize(
    ("scenario", "driver"), [("single-stream", "auto"), ("offline", "loadgen"), ("single-stream", "built-in")]
)
def test_measuring_here(artifact: Path, scenario: str, driver: str) -> None:
    options = BenchOptions(
        duration_s=0.05, min_queries=20, warm_up=2, repeats=1, scenario=scenario, driver=driver, operators=True
    )
    result = run([artifact], options, lambda line: None)["results"][0]
    assert result["queries"] >= 20
    assert result["driver"] == ("built-in" if driver == "built-in" else "loadgen")
    assert 0 < result["latency_ns"]["p50"]["value"] <= result["latency_ns"]["p99"]["value"]
    assert min(result["cold_start_ns"].values()) > 0
    assert result["peak_memory_bytes"] > 10 << 20
    assert {row["operator"] for row in result["operators"]} == {"Add", "Tanh"}
    assert result["environment"]["threads"] == 1


def _fake(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ssh runs its last argument here; scp copies here; adb does both. Each call is logged."""
    folder = tmp_path / "bin"
    folder.mkdir()
    python = f'PATH="{Path(sys.executable).parent}:$PATH"; export PATH; unset PYTHONPATH; cd /'
    log = f'echo "$0 $*" >> {tmp_path}/calls'
    _fake(folder, "ssh", f'{log}\n{python}\nfor last; do :; done\nexec sh -c "$last"')
    _fake(
        folder,
        "scp",
        f'{log}\nfor last; do :; done\nwhile [ $# -gt 2 ]; do shift; done\nexec cp -r "$1" "${{last#*:}}"',
    )
    _fake(
        folder,
        "adb",
        f'{log}\n{python}\nshift 2\nverb=$1; shift\n[ "$verb" = push ] && exec cp -r "$1" "$2"\n'
        'mkdir -p /data/local/tmp 2>/dev/null\nexec sh -c "$*"',
    )
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "calls"


def test_a_board_over_ssh_gets_one_bundle_and_the_artifact(artifact: Path, fakes: Path) -> None:
    options = BenchOptions(target="ssh://pi@board:2222", duration_s=0.05, min_queries=20, warm_up=2, repeats=2)
    result = run([artifact], options, lambda line: None)["results"][0]
    assert result["queries"] >= 40
    calls = fakes.read_text().splitlines()
    assert sum("scp" in c.split()[0] for c in calls) == 2  # bundle, artifact
    assert all("2222" in c for c in calls)
    assert "rm -rf" in calls[-1]
    folder = calls[-1].split()[-1]
    assert not Path(folder).exists()


def test_a_phone_over_adb(artifact: Path, fakes: Path) -> None:
    if os.getuid() != 0 and not Path("/data/local/tmp").is_dir():
        pytest.skip("the stand-in for adb needs a writable /data/local/tmp")
    options = BenchOptions(target="adb:SERIAL", duration_s=0.05, min_queries=20, warm_up=2, repeats=1)
    assert run([artifact], options, lambda line: None)["results"][0]["queries"] >= 20
    assert all("-s SERIAL" in c for c in fakes.read_text().splitlines())


def test_an_unreachable_board_is_exit_code_4(fakes: Path) -> None:
    _fake(fakes.parent / "bin", "ssh", 'echo "connect to host board port 22: No route to host" >&2; exit 255')
    with pytest.raises(TargetUnreachable, match="No route to host") as caught:
        open_transport("ssh://board")
    assert caught.value.exit_code == 4


def test_addresses_and_kinds_are_checked() -> None:
    with pytest.raises(TargetUnreachable, match="no address"):
        open_transport("ssh://board; rm -rf /")
    with pytest.raises(RegistryMiss, match="transport"):
        open_transport("telnet://board")


def test_a_broken_artifact_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(MeasurementFailed, match=r"broken\.onnx"):
        run([tmp_path / "broken.onnx"], QUICK, lambda line: None)
    with pytest.raises(BenchError, match="does not exist"):
        run([tmp_path / "none.onnx"], QUICK, lambda line: None)
    with pytest.raises(TargetUnreachable, match="nothing readable"):
        read_answer("Segmentation fault\n", "board")


def test_the_bundle_repeats_to_the_byte(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.pyz")
    write_bundle(tmp_path / "b.pyz")
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()


def test_compare_judges_and_exits(artifact: Path, tmp_path: Path) -> None:
    base = run([artifact], QUICK, lambda line: None)
    slow = json.loads(json.dumps(base))
    slow["results"][0]["repeat_medians_ns"] = [10 * v for v in base["results"][0]["repeat_medians_ns"]]
    for name, document in (("base", base), ("slow", slow)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert compare_results(tmp_path / "base.json", tmp_path / "base.json", 0.05)[0].verdict == "same"
    script = Path(sysconfig.get_path("scripts")) / "edgewright-bench"
    paths = [str(tmp_path / "base.json"), str(tmp_path / "slow.json")]
    worse = subprocess.run([script, "compare", *paths], capture_output=True, text=True)
    assert (worse.returncode, "1 slower" in worse.stdout) == (1, True)
    better = subprocess.run([script, "compare", *reversed(paths), "--json"], capture_output=True, text=True)
    assert better.returncode == 0
    assert json.loads(better.stdout)["comparisons"][0]["verdict"] == "faster"
    assert latency_plot(base) == latency_plot(base)


def test_incomparable_results_are_refused(artifact: Path, tmp_path: Path) -> None:
    base = run([artifact], QUICK, lambda line: None)
    other = json.loads(json.dumps(base))
    other["results"][0]["environment"]["cpu"] = "another"
    renamed = json.loads(json.dumps(base))
    renamed["results"][0]["artifact"] = "other.onnx"
    for name, document in (("base", base), ("other", other), ("renamed", renamed), ("nonsense", {"schema": "x"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    for name, message in (
        ("other", "measured on"),
        ("renamed", "in common"),
        ("nonsense", "schema"),
        ("missing", "not a results"),
    ):
        with pytest.raises(ResultsMismatch, match=message):
            compare_results(tmp_path / "base.json", tmp_path / f"{name}.json", 0.05)
