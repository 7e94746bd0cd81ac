"""The ladder's tests climb often: AdaRound learns for a few steps only, which its own test undoes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler.quantization.rescue import adaround


@pytest.fixture(scope="package", autouse=True)
def _short_learning() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(adaround, "STEPS", (5, 20))
    yield
    patch.undo()
