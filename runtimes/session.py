"""The Session protocol: one loaded model, whatever runs it."""

import itertools
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from runtimes.errors import InputMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
else:  # numpy.typing costs a board's start a millisecond, and nobody asks for the alias there
    Array = np.ndarray
Feeds = Mapping[str, Array]
SampleKey = slice | Sequence[int] | Array


class Samples(Protocol):
    """Samples on axis 0, in memory or elsewhere; every array is one. Only slicing reads them."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey, /) -> Array: ...


SampleFeeds = Mapping[str, Samples]


class Evidence(StrEnum):
    """What a session's answers prove about the artifact. Reports never blur these."""

    EXECUTED = "executed"  # the runtime that ships on the device, run here
    REFERENCE_VERIFIED = "reference-verified"  # our evaluator of the format's documented semantics
    DEVICE_VERIFIED = "device-verified"  # the vendor's runtime on the vendor's system


_dtype = lru_cache(maxsize=64)(np.dtype)  # by numpy's name


class TensorSpec(NamedTuple):
    """A model input or output. ``shape`` has None where the size is free; ``dtype`` is numpy's name ("float32")."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def accepts(self, array: Samples) -> bool:
        shape = array.shape
        if array.dtype != _dtype(self.dtype) or len(shape) != len(self.shape):
            return False
        # A loop: `all` over a generator takes twice as long, and this is asked for every request.
        for want, have in zip(self.shape, shape, strict=True):  # noqa: SIM110
            if want is not None and want != have:
                return False
        return True


class RuntimeInfo(NamedTuple):
    """Which runtime a session is, for reports: name in RUNTIMES, version of the package, kind of evidence."""

    name: str
    version: str
    evidence: Evidence


class SessionOptions(NamedTuple):
    """How to open a session. ``threads`` 0 leaves the choice to the runtime. ``profile`` asks for per-operator times.
    ``optimise``: False runs the graph as it is written, where a runtime offers that (onnxruntime)."""

    threads: int = 1
    provider: str | None = None  # execution provider, by the runtime's own name, or a delegate's shared library
    provider_options: tuple[tuple[str, str], ...] = ()  # handed to the provider as they are
    profile: bool = False
    optimise: bool = True


class Session(Protocol):
    """One loaded model.

    An implementation must: report inputs and outputs in the model's own order with the model's own names; reject
    feeds that do not fit through ``check_feeds``; return every output under its name, in arrays that stay valid after
    the next ``run``; allow ``close`` twice. ``run`` need not be thread-safe.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def runtime(self) -> RuntimeInfo: ...

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once. Raises InputMismatch for feeds that do not fit, InferenceFailed if the runtime fails."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SessionBase:
    """Shared code of the adapters: context management and nothing else."""

    def close(self) -> None:
        """Adapters that hold memory outside Python release it here."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Opener(Protocol):
    """What RUNTIMES holds: opens an artifact of one format.

    ``suffixes`` are the file (or folder) endings it reads. ``available`` says why it cannot run here, or None.
    """

    name: str
    suffixes: tuple[str, ...]

    def available(self) -> str | None: ...

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Raises RuntimeMissing, ModelLoadError."""
        ...


def check_feeds(specs: tuple[TensorSpec, ...], feeds: SampleFeeds) -> None:
    """Raises InputMismatch if a feed is missing, unknown, or of another dtype or shape than its spec."""
    if len(feeds) != len(specs) or not all(spec.name in feeds for spec in specs):
        expected = {spec.name for spec in specs}
        missing, extra = sorted(expected - set(feeds)), sorted(set(feeds) - expected)
        raise InputMismatch(
            f"The feeds do not name the model's inputs: missing {missing}, unknown {extra}.",
            remedy=f"Give exactly the arrays {sorted(expected)}.",
        )
    for spec in specs:
        array = feeds[spec.name]
        if not spec.accepts(array):
            want = "x".join("?" if d is None else str(d) for d in spec.shape)
            have = "x".join(map(str, array.shape))
            raise InputMismatch(
                f"Input {spec.name!r} is {array.dtype}[{have}], the model takes {spec.dtype}[{want}].",
                remedy="Convert the array to the model's dtype and shape.",
            )


def sample_rows(specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """How many rows of axis 0 one sample of each input takes: 1 where that axis is a batch, which all inputs then share.

    Inputs with first axes of different fixed sizes have no batch: a sample is all of each, one after another on axis 0.
    """
    fixed = {spec.name: spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    alike = len(set(fixed.values())) <= 1
    return {spec.name: 1 if alike else fixed.get(spec.name, 1) for spec in specs}


def run_dataset(session: Session, feeds: SampleFeeds, batch: int | Sequence[int] | None = None) -> dict[str, Array]:
    """Run every sample of ``feeds`` (sample axis 0) through ``session`` and concatenate the outputs.

    The model's own batch size is used where it is fixed, else ``batch`` (None: 32; several: in turn); the last incomplete batch
    is padded with copies of its last sample and the padding cut off again. Models without a batch axis run once for each
    sample, see ``sample_rows``.

    Raises:
        InputMismatch: feeds disagree in their number of samples, or do not fit the model.
    """
    rows = sample_rows(session.inputs)
    counts = {name: _count(array, rows.get(name, 1), name) for name, array in feeds.items()}
    if len(set(counts.values())) > 1:
        raise InputMismatch(
            f"The inputs have different sample counts: {counts}.", remedy="Give every input as many samples."
        )
    _check_samples(session.inputs, feeds)
    total = next(iter(counts.values()))
    fixed = next((s.shape[0] for s in session.inputs if s.shape), None) if set(rows.values()) <= {1} else 1
    sizes = itertools.cycle((fixed,) if fixed else batch if isinstance(batch, Sequence) else (batch or 32,))
    parts: list[dict[str, Array]] = []
    start = 0
    while start < total:
        size = next(sizes)
        size = size if fixed else min(size, total - start)
        chunk = {name: array[start * rows[name] : (start + size) * rows[name]] for name, array in feeds.items()}
        short = size - min(size, total - start)
        if short and any(s.shape and s.shape[0] is not None for s in session.inputs):
            chunk = {n: np.concatenate([a, np.repeat(a[-1:], short, axis=0)]) for n, a in chunk.items()}
        outputs = session.run(chunk)
        parts.append({n: a[: size - short] if a.ndim else a for n, a in outputs.items()} if short else outputs)
        start += size
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


def _check_samples(specs: tuple[TensorSpec, ...], feeds: SampleFeeds) -> None:
    """Names and shapes, with any number of samples; of types a session judges itself, it may take wider ones."""
    types = {name: str(array.dtype) for name, array in feeds.items()}
    check_feeds(
        tuple(TensorSpec(s.name, types.get(s.name, s.dtype), (None, *s.shape[1:]) if s.shape else ()) for s in specs),
        feeds,
    )


def _count(array: Samples, rows: int, name: str) -> int:
    """How many samples of ``rows`` each ``array`` holds. Raises InputMismatch for a part of one."""
    length = array.shape[0] if array.ndim else 1
    if length % rows:
        raise InputMismatch(
            f"Input {name!r} has {length} rows, a sample takes {rows}.", remedy="Give whole samples, stacked on axis 0."
        )
    return length // rows
