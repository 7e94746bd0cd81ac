from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from runtimes.errors import ChildFailed, DeltaError, InputMismatch, ModelLoadError
from runtimes.isolation import open_isolated, run_isolated

HERE = "tests.runtimes.isolation_targets"


def test_arrays_cross_and_return() -> None:
    total = run_isolated(f"{HERE}:add", {"first": np.arange(5.0), "second": 1.0}, timeout_s=30)
    np.testing.assert_array_equal(total, np.arange(1.0, 6.0))


def test_output_of_the_child_does_not_disturb_the_answer() -> None:
    assert run_isolated(f"{HERE}:chatter", {}, timeout_s=30) == "answer"


def test_a_crash_names_the_signal() -> None:
    with pytest.raises(ChildFailed, match="SIGSEGV"):
        run_isolated(f"{HERE}:crash", {}, timeout_s=30)


def test_an_exit_tells_its_last_words() -> None:
    with pytest.raises(ChildFailed, match=r"(?s)exit code 7.*about to leave"):
        run_isolated(f"{HERE}:leave", {}, timeout_s=30)


def test_time_is_limited() -> None:
    with pytest.raises(ChildFailed, match=r"within 0\.5 s"):
        run_isolated(f"{HERE}:sleep", {"seconds": 60}, timeout_s=0.5)


def test_memory_is_limited() -> None:
    with pytest.raises(ChildFailed, match="bytes of memory"):
        run_isolated(f"{HERE}:eat", {"size_bytes": 400 << 20}, timeout_s=60, memory_bytes=200 << 20)


def test_typed_errors_come_back_as_they_are() -> None:
    with pytest.raises(DeltaError, match="damaged") as caught:
        run_isolated(f"{HERE}:refuse", {}, timeout_s=30)
    assert caught.value.remedy == "Fetch it again."


def test_other_errors_bring_their_trace() -> None:
    with pytest.raises(ChildFailed, match="ZeroDivisionError"):
        run_isolated(f"{HERE}:divide", {}, timeout_s=30)


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[N, 2] x) => (float[N, 2] y) { y = Add (x, x) }'
    path = tmp_path / "doubler.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_an_isolated_session_is_a_session(doubler: Path) -> None:
    with open_isolated(doubler, timeout_s=60) as session:
        assert [s.name for s in session.inputs] == ["x"]
        for value in (1.0, 2.0):
            outputs = session.run({"x": np.full((3, 2), value, np.float32)})
            np.testing.assert_array_equal(outputs["y"], np.full((3, 2), 2 * value, np.float32))
        with pytest.raises(InputMismatch):
            session.run({"x": np.zeros((3, 2), np.float64)})
    session.close()


def test_a_damaged_file_is_refused_there(doubler: Path) -> None:
    doubler.write_bytes(doubler.read_bytes()[:20])
    with pytest.raises(ModelLoadError):
        open_isolated(doubler, timeout_s=60)
