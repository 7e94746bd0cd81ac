"""A real package whose program is changed where it still parses: a typed error or an answer, never anything else."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiles.errors import EdgewrightError
from runtimes.coreml_reference.proto import model_class
from runtimes.coreml_reference.session import open_package

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
NUMBERS = [0, 1, 2, 3, 7, -1, 64, 1 << 20, 1 << 40, (1 << 63) - 1]
EXTRA_BYTES = 4 << 30  # beyond what is mapped already: an allocation of a damaged size must fail, not fill the machine
ROUNDS = 12


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("the memory mapped so far is not told here")
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + EXTRA_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _leaves(message: Any) -> Iterator[tuple[Any, Any]]:
    """(owner, field) of every scalar field that is set, depth first."""
    for field, value in message.ListFields():
        if field.message_type is None:
            yield message, field
        elif field.message_type.GetOptions().map_entry:
            for key in value:
                if hasattr(value[key], "ListFields"):
                    yield from _leaves(value[key])
        else:
            for child in value if _is_repeated(value) else [value]:
                yield from _leaves(child)


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "append") or hasattr(value, "add")


def _changed(old: Any, names: list[str], rng: random.Random) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice([*NUMBERS, old + 1, max(old - 1, 0)])
    if isinstance(old, float):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    return rng.choice(names) if isinstance(old, str) else old[: len(old) // 2]


def _damage(spec: Any, names: list[str], rng: random.Random) -> None:
    owner, field = rng.choice(list(_leaves(spec.mlProgram)))
    value = getattr(owner, field.name)
    try:
        if _is_repeated(value):
            index = rng.randrange(len(value))
            value[index] = _changed(value[index], names, rng)
        else:
            setattr(owner, field.name, _changed(value, names, rng))
    except (ValueError, TypeError):  # the field's own type has no room for this number
        owner.ClearField(field.name)


def test_changed_fields_never_escape_as_another_error(realdata: Path, tmp_path: Path, bounded_memory: None) -> None:
    package = tmp_path / "basic_pitch.mlpackage"
    shutil.copytree(realdata / "basic_pitch" / "nmp.mlpackage", package)
    original = (package / MODEL).read_bytes()
    spec = model_class().FromString(original)
    names = sorted({op.type for op in _operations(spec)} | {o.name for op in _operations(spec) for o in op.outputs})
    rng, refused = random.Random(5), 0
    for _ in range(ROUNDS):
        damaged = model_class().FromString(original)
        _damage(damaged, names, rng)
        (package / MODEL).write_bytes(damaged.SerializeToString())
        try:
            with open_package(package) as session:
                session.run({s.name: np.zeros([d or 1 for d in s.shape], s.dtype) for s in session.inputs})
        except EdgewrightError as error:
            refused += 1
            assert error.remedy
    assert refused > 0


def _operations(spec: Any) -> list[Any]:
    return list(next(iter(spec.mlProgram.functions["main"].block_specializations.values())).operations)
