"""Programs with loops in loops, branches and lists, damaged inside their blocks: one typed error with the place, or an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiles.errors import EdgewrightError
from runtimes.coreml_reference import control
from runtimes.coreml_reference.proto import model_class
from runtimes.coreml_reference.session import open_package
from runtimes.memory import peak_memory_bytes
from tests.compiler.exporters.coreml.support import export, hub, parse
from tests.runtimes.coreml_reference.damage import MODEL, damage

TEXT = """g (float[3] x, int64[1] n) => (float[3] y, float[2,3] all) {
  y, all = Loop(n, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e, float[3] f) {
    d = Identity(c)
    e = Loop(two, , a) <body = b2 (int64 i2, bool c2, float[3] a2) => (bool d2, float[3] e2) {
      d2 = Identity(c2)
      t = ReduceSum<keepdims = 0>(a2)
      p = Less(t, zero)
      r = If(p) <then_branch = u () => (float[3] v) { v = Neg(a2) }, else_branch = w () => (float[3] q) { q = Sub(a2, x) }>
      e2 = Mul(r, half)
    }>
    f = Neg(e)
  }>
}"""
FEEDS = {"x": np.float32([1, -2, 3]), "n": np.int32([2])}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    constants = {"two": np.array([2]), "zero": np.float32(0), "half": np.float32(0.5)}
    model = hub(parse(TEXT, **{name: np.asarray(value) for name, value in constants.items()}))
    return export(model, tmp_path_factory.mktemp("blocks"))[0]


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged condition may never end."""
    monkeypatch.setattr(control, "MAX_ITERATIONS", 300)


@pytest.fixture
def original(package: Path) -> Iterator[bytes]:
    content = (package / MODEL).read_bytes()
    yield content
    (package / MODEL).write_bytes(content)


def _error(package: Path) -> EdgewrightError | None:
    try:
        with open_package(package) as session:
            session.run(FEEDS)
    except EdgewrightError as error:
        assert error.remedy and error.message
        return error
    return None


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _main(spec: Any) -> Any:
    return next(iter(spec.mlProgram.functions["main"].block_specializations.values()))


def _first(spec: Any, kind: str) -> Any:
    return next(operation for operation in _operations(_main(spec)) if operation.type == kind)


def test_it_is_whole_before(package: Path) -> None:
    assert _error(package) is None


def test_any_field_inside_a_block_may_change(package: Path, original: bytes) -> None:
    rng, refused = random.Random(2), 0
    names = ["", "x", "y", "while_loop", "cond", "list_write", "i", "bool", "fp32"]
    for _ in range(150):
        spec = model_class().FromString(original)
        damage(_first(spec, rng.choice(["while_loop", "cond", "list_write"])), names, rng)
        (package / MODEL).write_bytes(spec.SerializeToString())
        refused += _error(package) is not None
    assert refused > 40


def test_the_program_may_end_anywhere(package: Path, original: bytes) -> None:
    before, refused = peak_memory_bytes(), 0
    for end in range(1, len(original), max(1, len(original) // 150)):
        (package / MODEL).write_bytes(original[:end])
        refused += _error(package) is not None
    assert refused > 100
    assert peak_memory_bytes() - before < 256 << 20


def _truncate(spec: Any) -> None:
    del _first(spec, "while_loop").blocks[1].operations[-3:]


def _no_results(spec: Any) -> None:
    del _first(spec, "while_loop").blocks[1].outputs[:]


def _fewer_inputs(spec: Any) -> None:
    del _first(spec, "while_loop").blocks[1].inputs[-1]


def _one_branch(spec: Any) -> None:
    del _first(spec, "cond").blocks[1]


def _endless(spec: Any) -> None:
    less = _first(spec, "less")
    less.inputs["y"].arguments[0].Clear()
    less.inputs["y"].arguments[0].name = less.inputs["x"].arguments[0].name
    less.type = "less_equal"


def _unknown(spec: Any) -> None:
    _first(spec, "cond").blocks[0].operations[-1].type = "teleport"


def _far_index(spec: Any) -> None:
    _first(spec, "list_write").inputs["index"].arguments[0].Clear()
    value = _first(spec, "list_write").inputs["index"].arguments[0].value
    value.type.tensorType.dataType = 23  # MIL.proto's INT32
    value.immediateValue.tensor.ints.values.append(2**31 - 1)


def _other_list(spec: Any) -> None:
    _first(spec, "list_write").inputs["ls"].arguments[0].name = "x"


def _declared_otherwise(spec: Any) -> None:
    _first(spec, "while_loop").outputs[-2].type.tensorType.dimensions[0].constant.size = 4


DAMAGES = {
    "a body that ends early": (_truncate, r"A block of while_loop 'y.*' returns .* which nothing defines"),
    "a body without results": (_no_results, r"while_loop 'y.*': its block takes \d+ values, 0 are given"),
    "a body with an input less": (_fewer_inputs, r"list_write '.*' reads \['all_list.*'\], which nothing defines"),
    "a branch alone": (_one_branch, r"cond '.*': it has 1 blocks, expected 2"),
    "a loop without an end": (_endless, r"while_loop '.*': it still runs after 300 iterations"),
    "an unknown operation": (_unknown, "does not know: teleport"),
    "an index beyond any list": (_far_index, r"list_write '.*': a list of 2147483648 elements is longer"),
    "a loop that declares another shape": (
        _declared_otherwise,
        r"while_loop '.*': yields shape \[3\], .* declares \[4\]",
    ),
    "a tensor for a list": (_other_list, r"list_write '.*': argument 'ls' is no list"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_error_names_the_place(name: str, package: Path, original: bytes) -> None:
    damage, text = DAMAGES[name]
    spec = model_class().FromString(original)
    damage(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())
    error = _error(package)
    assert error is not None
    with pytest.raises(type(error), match=text):
        raise error
