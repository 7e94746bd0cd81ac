"""Reads calibration and evaluation data: an .npz or .npy file, a folder of them, ``module:callable``, or what files.py reads.

The content is a mapping of arrays named as the model's inputs, plus ``labels`` for evaluation; if the model has a single input, any
single other array is it. Nothing is unpickled.
"""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.calibration.files import TABLES, Declarations, Read, media_in, read_media, read_table
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
    path = Path(spec)
    found = _read(spec, path, inputs, declared)
    return replace(make_dataset(found.arrays, inputs, where=spec), classes=found.classes)


def _read(spec: str, path: Path, inputs: tuple[TensorSpec, ...], declared: Declarations | None) -> Read:
    match = _CALLABLE.fullmatch(spec)
    if match and not path.exists():
        return Read(_from_callable(match["module"], match["name"], spec))
    if path.is_dir():
        files = media_in(path)
        return read_media(path, files, inputs, declared) if files else Read(_from_folder(path, inputs))
    if path.is_file():
        return read_table(path, inputs) if path.suffix.lower() in TABLES else Read(_from_file(path))
    raise DataError(
        f"{spec} does not exist.", remedy="Give an .npz, .csv or .parquet file, a folder, or module:callable."
    )


def _from_file(path: Path) -> dict[str, Array]:
    """Arrays of an .npz by name; the array of an .npy under its file's name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {path.stem: loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as numpy data: {error}",
            remedy="Save it again with numpy.savez, without object arrays.",
        ) from error


def _from_folder(folder: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """A folder is either one .npy per input, named as it, or any number of files whose samples are put together.

    In the second form files are taken in the order of their names; an .npy holds one sample, or a stack of samples.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".npz"))
    if not files:
        raise DataError(
            f"{folder} holds no .npy or .npz file, picture or recording.",
            remedy="Put the samples there, or give another folder.",
        )
    contents = [_from_file(file) for file in files]
    stems = {file.stem for file in files if file.suffix == ".npy"}
    if {spec.name for spec in inputs} <= stems:
        return {name: array for content in contents for name, array in content.items()}
    if len(inputs) == 1:
        rank = len(inputs[0].shape)
        contents = [_stacked(c, rank) if f.suffix == ".npy" else c for f, c in zip(files, contents, strict=True)]
    return _joined(contents, str(folder))


def _stacked(content: dict[str, Array], rank: int) -> dict[str, Array]:
    """The nameless single array of an .npy, with a sample axis in front if it lacks one."""
    array = next(iter(content.values()))
    return {_NAMELESS: array[np.newaxis] if array.ndim == rank - 1 else array}


def _from_callable(module: str, name: str, spec: str) -> dict[str, Array]:
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m does, so that a module beside the model is found
        sys.path.insert(0, here)
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{spec} cannot be imported: {error}", remedy="Check the module's and function's names."
        ) from error
    try:
        return _from_result(function(), spec)
    except DataError:
        raise
    except Exception as error:  # anything may go wrong in a stranger's function
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}", remedy="Mend the function.") from error


def _from_result(result: Any, spec: str) -> dict[str, Array]:
    if isinstance(result, (Mapping, np.ndarray)):
        return _named(result, spec)
    if isinstance(result, Iterable):
        return _joined([_named(item, spec) for item in result], spec)
    raise DataError(
        f"{spec} returned {type(result).__name__}.",
        remedy="Return a mapping of arrays, an array, or an iterable of these.",
    )


def _named(item: Any, spec: str) -> dict[str, Array]:
    if isinstance(item, np.ndarray):
        return {_NAMELESS: item}
    if isinstance(item, Mapping):
        return {str(name): np.asarray(array) for name, array in item.items()}
    raise DataError(f"{spec} yielded {type(item).__name__}.", remedy="Yield mappings of arrays, or arrays.")


def _joined(parts: list[dict[str, Array]], where: str) -> dict[str, Array]:
    """Parts with the same names, put together along axis 0."""
    if not parts:
        raise DataError(f"{where} holds no samples.", remedy="Give at least one sample.")
    names = set(parts[0])
    odd = next((part for part in parts if set(part) != names), None)
    if odd is not None:
        raise DataError(
            f"{where}: parts hold different arrays: {sorted(names)} and {sorted(odd)}.",
            remedy="Give every part the same array names.",
        )
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in sorted(names)}
    except ValueError as error:
        raise DataError(
            f"{where}: parts do not fit together: {error}", remedy="Give every part the same sample shape."
        ) from error
