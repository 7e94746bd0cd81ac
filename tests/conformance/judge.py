"""Runs the suite through one exporter in child processes, since a runtime may kill the interpreter that feeds it a bad file."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.outside import outside
from tests.conformance.peer import PEER, export_by_onnxsim, run_by_name_or_place
from tests.conformance.suite import Case, suite

PASSED, REFUSED, WRONG, CRASHED = "passed", "refused", "wrong", "crashed"
# Formats whose inputs and outputs have no 64-bit or boolean type: integers are compared by value.
NARROW_INTEGERS = {"coreml", PEER}
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one case: ``reason`` says why it was refused, or how it is wrong."""

    name: str
    status: str
    reason: str = ""


def judge_all(fmt: str, every: int = 1, target: str = "iOS17") -> list[Result]:
    """Each ``every``-th case that the format can represent. A crash of the runtime costs the case that caused it, no other."""
    names = [case.name for case in suite() if not outside(case, fmt)][::every]
    return judge_named(fmt, names, target)


def judge_named(fmt: str, names: list[str], target: str = "iOS17") -> list[Result]:
    """The cases called ``names``, in that order."""
    results: dict[str, Result] = {}
    while len(results) < len(names):
        for result in _child(fmt, [name for name in names if name not in results], target):
            results[result.name] = result
        left = [name for name in names if name not in results]
        if left:
            results[left[0]] = Result(left[0], CRASHED, "the interpreter died")
    return [results[name] for name in names]


def _child(fmt: str, names: list[str], target: str) -> Iterator[Result]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(names, file)
        file.flush()
        command = [sys.executable, "-m", "tests.conformance.judge", fmt, file.name, target]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield Result(**json.loads(line))


def judge(case: Case, fmt: str, folder: Path, target: str = "iOS17") -> Result:
    """Import, lower, execute and compare one case at the suite's own tolerance; shapes and types must be the suite's."""
    from compiler.errors import SourceError, UnsupportedModel
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from compiler.importers.base import ImportOptions
    from compiler.importers.hub_form import to_hub
    from profiles.schema import Precision
    from runtimes.registry import open_session

    if fmt == PEER:
        return _judge_peer(case, folder, target)
    assert case.model is not None
    exporter, options = EXPORTERS.get(fmt), ExportOptions(precision=Precision.FP32, deployment_target=target)
    try:
        hub = to_hub(case.model, ImportOptions(input_shapes=_empty_shapes(case)))
        path = exporter.export(hub, folder / f"case{exporter.suffix}", options).path
    except UnsupportedModel as error:
        first = error.refusals[0]
        return Result(case.name, REFUSED, f"{first.op_type}: {first.reason}")
    except SourceError as error:
        return Result(case.name, REFUSED, f"import: {error.message}"[:160])
    with open_session(path) as session:
        outputs = session.run({spec.name: case.feeds[spec.name].astype(spec.dtype) for spec in session.inputs})
    return Result(case.name, *_compared(case, outputs, same_types=fmt not in NARROW_INTEGERS))


def _empty_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """In a model file a size of 0 is a free one; a caller who means it says so."""
    return {name: array.shape for name, array in case.feeds.items() if array.size == 0}


def _judge_peer(case: Case, folder: Path, target: str) -> Result:
    path = export_by_onnxsim(case, folder, target)
    if isinstance(path, str):
        return Result(case.name, REFUSED, path)
    return Result(case.name, *_compared(case, run_by_name_or_place(path, case), same_types=False))


def _compared(case: Case, outputs: dict[str, Any], *, same_types: bool) -> tuple[str, str]:
    for name, expected in case.expected.items():
        actual = outputs[name]
        if expected.dtype.name in ("int4", "uint4") and actual.dtype.itemsize == 1:
            actual = actual.astype(expected.dtype)  # LiteRT's Python interface hands four bits out in a byte
        if not same_types and expected.dtype.kind in "iub":
            actual = actual.astype(expected.dtype)
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return (
                WRONG,
                f"{name} is {actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}",
            )
        try:
            np.testing.assert_allclose(_plain(actual), _plain(expected), rtol=case.rtol, atol=case.atol)
        except AssertionError as error:
            return WRONG, " ".join(str(error).split())[:160]
    return PASSED, ""


def _plain(array: Any) -> Any:
    """numpy compares its own types alone."""
    return array.astype(np.float64) if array.dtype.name in ("bfloat16", "int4", "uint4") else array


def main(fmt: str, names_path: str, target: str) -> None:
    """The child: one JSON line per case."""
    wanted = json.loads(Path(names_path).read_text("utf-8"))
    by_name = {case.name: case for case in suite()}
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            try:
                result = judge(by_name[name], fmt, Path(folder), target)
            except Exception as error:  # a failure inside the exporter or the runtime is a finding, not the end
                result = Result(name, CRASHED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
            print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
