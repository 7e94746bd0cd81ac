"""What a child process does wrong arrives as a typed error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtimes.errors import ChildFailed, InputMismatch, ModelLoadError
from runtimes.isolation import Child, open_isolated, run_isolated

HERE = "tests.runtimes.children"


def test_a_result_crosses() -> None:
    assert run_isolated(f"{HERE}:double", {"x": 21}, timeout_s=20) == 42


def test_a_crash_names_the_signal() -> None:
    with pytest.raises(ChildFailed, match="signal 11"):
        run_isolated(f"{HERE}:crash", {}, timeout_s=20)


def test_an_exit_names_the_code() -> None:
    with pytest.raises(ChildFailed, match="code 7"):
        run_isolated(f"{HERE}:leave", {"code": 7}, timeout_s=20)


def test_a_hanging_child_is_killed_in_time() -> None:
    begun = time.monotonic()
    with Child() as child, pytest.raises(ChildFailed, match=r"within 0\.5 s"):
        child.call(f"{HERE}:sleep", {"seconds": 60}, timeout_s=0.5)
    assert time.monotonic() - begun < 20
    assert child._process.poll() is not None


def test_memory_is_limited() -> None:
    with pytest.raises(ChildFailed, match="memory limit of 1024 MiB"):
        run_isolated(f"{HERE}:allocate", {"size_bytes": 2 << 30}, timeout_s=20, memory_bytes=1 << 30)


def test_memory_below_the_limit_is_granted() -> None:
    size = 64 << 20
    assert run_isolated(f"{HERE}:allocate", {"size_bytes": size}, timeout_s=20, memory_bytes=2 << 30) == size


def test_our_errors_cross_with_their_remedy() -> None:
    with pytest.raises(ModelLoadError, match="stem/conv1 is broken") as caught:
        run_isolated(f"{HERE}:refuse", {}, timeout_s=20)
    assert caught.value.remedy == "Mend stem/conv1."


@pytest.mark.parametrize(
    ("name", "text"), [("foreign", "KeyError"), ("unpicklable", "cannot be sent"), ("nobody", "nobody")]
)
def test_other_failures_are_told(name: str, text: str) -> None:
    with pytest.raises(ChildFailed, match=text):
        run_isolated(f"{HERE}:{name}", {}, timeout_s=20)


def test_large_arguments_and_results_cross() -> None:
    with Child() as child:
        assert len(child.call("base64:b64encode", {"s": bytes(3 << 20)}, timeout_s=20)) == 4 << 20


def test_a_missing_model_is_reported_by_the_child(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        open_isolated(tmp_path / "none.mlpackage", timeout_s=20)


def test_an_isolated_session_answers_as_one_here(tiny_package: Path) -> None:
    import numpy as np

    from runtimes.registry import open_session

    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with open_session(tiny_package, runtime="coreml-reference") as here:
        expected = here.run(feeds)
        with open_isolated(tiny_package, runtime="coreml-reference", timeout_s=30) as session:
            assert (session.inputs, session.outputs, session.runtime) == (here.inputs, here.outputs, here.runtime)
            with pytest.raises(InputMismatch):
                session.run({})
            assert np.array_equal(session.run(feeds)["y"], expected["y"])
            session.close()
            with pytest.raises(ChildFailed, match="is gone"):
                session.run(feeds)
