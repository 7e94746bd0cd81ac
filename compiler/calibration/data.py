"""Reads calibration and evaluation data: an .npz or .npy file, a folder of them, ``module:callable``, or what files.py reads.

Everything is read piece by piece and handed on as chunks, so that memory does not grow with the number of samples. The content is
arrays named as the model's inputs, plus ``labels`` for evaluation; if the model has a single input, any single other array is it.
Nothing is unpickled.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.calibration.arrays import array_names, array_rank, read_arrays
from compiler.calibration.dataset import Chunk, Dataset, stream_dataset
from compiler.calibration.files import Declarations, Source, media_in, read_media
from compiler.calibration.tables import TABLES, read_table
from compiler.errors import DataError
from runtimes.session import Array, TensorSpec

_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")
_NAMELESS = "samples"  # the name of an array that came without one


def load_dataset(spec: str, inputs: tuple[TensorSpec, ...], declared: Declarations | None = None) -> Dataset:
    """Load and check the data that ``spec`` names.

    Args:
        spec: a path, or ``module:callable``. The callable takes nothing and returns a mapping of arrays, a single
            array, or an iterable of either, one item per batch of samples.
        inputs: the model's inputs; samples are stacked on axis 0.
        declared: how pictures and recordings become inputs, by input name.

    Raises:
        DataError: the data cannot be read or does not fit the model.
    """
    found = _open(spec, Path(spec), inputs, declared)
    return replace(stream_dataset(found.names, found.chunks, inputs, where=spec), classes=found.classes)


def _open(spec: str, path: Path, inputs: tuple[TensorSpec, ...], declared: Declarations | None) -> Source:
    match = _CALLABLE.fullmatch(spec)
    if match and not path.exists():
        return _from_callable(match["module"], match["name"], spec)
    if path.is_dir():
        files = media_in(path)
        return read_media(path, files, inputs, declared) if files else _from_folder(path, inputs)
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return read_table(path, inputs)
        return Source(array_names(path), read_arrays(path))
    raise DataError(
        f"{spec} does not exist.", remedy="Give an .npz, .csv or .parquet file, a folder, or module:callable."
    )


def _from_folder(folder: Path, inputs: tuple[TensorSpec, ...]) -> Source:
    """A folder is either one .npy per input, named as it, or any number of files whose samples are put together.

    In the second form files are taken in the order of their names; an .npy holds one sample, or a stack of samples.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".npz"))
    if not files:
        raise DataError(
            f"{folder} holds no .npy or .npz file, picture or recording.",
            remedy="Put the samples there, or give another folder.",
        )
    stems = {file.stem for file in files if file.suffix == ".npy"}
    if {spec.name for spec in inputs} <= stems:
        names = tuple(name for file in files for name in array_names(file))
        return Source(names, (chunk for file in files for chunk in read_arrays(file)))
    rank = len(inputs[0].shape) if len(inputs) == 1 else None
    if rank is None or files[0].suffix == ".npz":
        names = array_names(files[0])
    else:
        names = (_NAMELESS,)
    return Source(names, _joined(files, names, rank, str(folder)))


def _joined(files: list[Path], names: Sequence[str], rank: int | None, where: str) -> Iterator[Chunk]:
    """The files' samples, one file after another; each has the same arrays."""
    for file in files:
        single = rank is not None and file.suffix == ".npy"
        _check_same(names, names[:1] if single else array_names(file), where)
        if rank is not None and single and array_rank(file) == rank - 1:  # one sample, which is not to be cut
            yield names[0], np.concatenate([rows for _, rows in read_arrays(file)])[np.newaxis]
            continue
        for name, rows in read_arrays(file):
            yield names[0] if single else name, rows


def _check_same(names: Sequence[str], found: Iterable[str], where: str) -> None:
    if set(found) != set(names):
        raise DataError(
            f"{where}: parts hold different arrays: {sorted(names)} and {sorted(found)}.",
            remedy="Give every part the same array names.",
        )


def _from_callable(module: str, name: str, spec: str) -> Source:
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m does, so that a module beside the model is found
        sys.path.insert(0, here)
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{spec} cannot be imported: {error}", remedy="Check the module's and function's names."
        ) from error
    items = _items(function, spec)
    first = next(items, None)
    if first is None:
        raise DataError(f"{spec} holds no samples.", remedy="Give at least one sample.")
    names = tuple(first)
    return Source(names, _chunks(first, items, names, spec))


def _chunks(
    first: dict[str, Array], items: Iterator[dict[str, Array]], names: Sequence[str], spec: str
) -> Iterator[Chunk]:
    yield from first.items()
    for item in items:
        _check_same(names, item, spec)
        yield from item.items()


def _items(function: Callable[[], Any], spec: str) -> Iterator[dict[str, Array]]:
    """What the function returns, or yields one by one: anything may go wrong in a stranger's function."""
    try:
        result = function()
        if isinstance(result, (Mapping, np.ndarray)):
            yield _named(result, spec)
        elif isinstance(result, Iterable):
            for item in result:
                yield _named(item, spec)
        else:
            raise DataError(
                f"{spec} returned {type(result).__name__}.",
                remedy="Return a mapping of arrays, an array, or an iterable of these.",
            )
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}", remedy="Mend the function.") from error


def _named(item: Any, spec: str) -> dict[str, Array]:
    if isinstance(item, np.ndarray):
        return {_NAMELESS: item}
    if isinstance(item, Mapping):
        return {str(name): np.asarray(array) for name, array in item.items()}
    raise DataError(f"{spec} yielded {type(item).__name__}.", remedy="Yield mappings of arrays, or arrays.")
