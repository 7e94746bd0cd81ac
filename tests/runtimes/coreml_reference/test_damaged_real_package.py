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
from tests.runtimes.coreml_reference.damage import MODEL, damage

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


def test_changed_fields_never_escape_as_another_error(realdata: Path, tmp_path: Path, bounded_memory: None) -> None:
    package = tmp_path / "basic_pitch.mlpackage"
    shutil.copytree(realdata / "basic_pitch" / "nmp.mlpackage", package)
    original = (package / MODEL).read_bytes()
    spec = model_class().FromString(original)
    names = sorted({op.type for op in _operations(spec)} | {o.name for op in _operations(spec) for o in op.outputs})
    rng, refused = random.Random(5), 0
    for _ in range(ROUNDS):
        damaged = model_class().FromString(original)
        damage(damaged.mlProgram, names, rng)
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
