"""Bad input at every rim, through the installed scripts: exit code, words, a remedy, no trace, nothing half-written."""

from __future__ import annotations

import os
import resource
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from tests.compiler.small_net import UNSUPPORTED, save_net

SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good net, good data, and bad ones of each."""
    folder = tmp_path_factory.mktemp("inputs")
    save_net(folder / "net.onnx")
    save_net(folder / "unsupported.onnx", UNSUPPORTED)
    whole = (folder / "net.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "damaged.pt2").write_bytes(b"PK\x03\x04 not an archive")
    (folder / "unknown.h5x").write_bytes(b"?")
    images = np.random.default_rng(1).random((64, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "good.npz", image=images)
    np.savez(folder / "turned.npz", image=images.transpose(0, 2, 3, 1))
    np.savez(folder / "misnamed.npz", picture=images, other=images)
    np.savez(folder / "nan.npz", image=np.where(images > 0.9, np.nan, images).astype(np.float32))
    np.savez(folder / "text.npz", image=np.array(["a", "b"]))
    np.savez(folder / "none.npz", image=images[:0])
    (folder / "broken.npz").write_bytes(b"PK\x03\x04")
    return folder


def _run(folder: Path, *arguments: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [str(SCRIPTS / arguments[0]), *arguments[1:]]
    environment = os.environ | {"NO_COLOR": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, preexec_fn=limit, timeout=300
    )


def _assert_refused(done: subprocess.CompletedProcess[str], code: int, words: str, out: Path) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    assert words.lower() in done.stderr.lower(), done.stderr
    assert "traceback" not in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) >= 2, f"no remedy: {done.stderr}"
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*")), "a scratch folder was left behind"


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("missing.onnx", 3, "missing.onnx"),
        ("truncated.onnx", 3, "truncated.onnx"),
        ("noise.onnx", 3, "noise.onnx"),
        ("empty.onnx", 3, "empty.onnx"),
        ("damaged.pt2", 3, "damaged.pt2"),
        ("unknown.h5x", 3, "unknown.h5x"),
        ("unsupported.onnx", 3, "RandomNormalLike"),
        ("nowhere.py:net", 3, "nowhere.py"),
    ],
)
def test_bad_models(folder: Path, tmp_path: Path, source: str, code: int, words: str) -> None:
    done = _run(folder, "edgewright", "build", source, "-o", str(tmp_path / "out"))
    _assert_refused(done, code, words, tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("turned.npz", "8x8x3"),
        ("misnamed.npz", "picture"),
        ("nan.npz", "nan"),
        ("text.npz", "text.npz"),
        ("none.npz", "sample"),
        ("broken.npz", "broken.npz"),
        ("absent.npz", "absent.npz"),
    ],
)
def test_bad_calibration_data(folder: Path, tmp_path: Path, data: str, words: str) -> None:
    done = _run(folder, "edgewright", "build", "net.onnx", "-o", str(tmp_path / "out"), "--calibration", data)
    _assert_refused(done, 2, words, tmp_path / "out")


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    done = _run(folder, "edgewright", "build", "net.onnx", "-o", str(tmp_path / "out"), limit_bytes=512)
    _assert_refused(done, 2, "cannot write", tmp_path / "out")


def test_an_output_below_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _run(folder, "edgewright", "build", "net.onnx", "-o", str(tmp_path / "file" / "out"))
    assert done.returncode == 2 and "cannot write" in done.stderr.lower() and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("edgewright", "run", "truncated.onnx", "--inputs", "good.npz", "-o", "answers.npz"), 3, "truncated.onnx"),
        (("edgewright", "run", "net.onnx", "--inputs", "turned.npz", "-o", "answers.npz"), 2, "image"),
        (("edgewright", "release", "verify", "nothing-here"), 2, "nothing-here"),
        (
            (
                "edgewright",
                "release",
                "publish",
                "nothing-here",
                "repo",
                "--keys",
                "k",
                "--no-password",
                "--release",
                "1",
            ),
            2,
            "no repository",
        ),
        (("edgewright", "delta", "encode", "absent", "net.onnx", "-o", "patch"), 2, "absent"),
        (("edgewright-bench", "run", "absent.tflite"), 2, "absent.tflite"),
        (("edgewright-bench", "compare", "absent.json", "net.onnx"), 2, "absent.json"),
        (("edgewright-agent", "status", "--config", "absent.toml"), 2, "absent.toml"),
    ],
)
def test_other_commands(folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    _assert_refused(_run(folder, *arguments), code, words, tmp_path / "out")
    assert not {"patch", "answers.npz", "repo"} & {p.name for p in folder.iterdir()}
