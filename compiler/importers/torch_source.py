"""Loads PyTorch sources: .pt2 archives, .pt files and ``module:factory``; files run no code unless that is allowed."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import SourceError

MAX_MODEL_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TorchSource:
    """``program`` is an ExportedProgram (.pt2) or an nn.Module; ``examples`` are its positional example inputs, if known.

    ``file`` is what the digest is taken of: the model file, or the Python file that holds the factory.
    """

    program: Any
    examples: tuple[Any, ...] | None
    file: Path | None
    exported: bool


def load_pt2(path: Path, allow_pickle: bool) -> TorchSource:
    """Load an archive of torch.export.save. Raises SourceError."""
    import torch

    _check_file(path)
    if not allow_pickle:
        _refuse_pickles(path)
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # a damaged archive ends in many kinds of error
        raise _damaged(path, error) from error
    examples = program.example_inputs[0] if program.example_inputs else None
    return TorchSource(program, examples, path, exported=True)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} is not a file.", remedy="Check the path of the model.")
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise SourceError(f"{path} has {size} bytes, more than 2 GiB.", remedy="Choose a model that edge devices hold.")


def _damaged(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{path} cannot be loaded: {first_cause(error)}", remedy="Check that the file is whole; export it again."
    )


def _refuse_pickles(path: Path) -> None:
    """torch.export.load unpickles freely what an archive says is pickled, so look before it does.

    Plain weights are raw bytes. Pickled are: tensors marked use_pickle, custom objects, and the sample inputs, which
    must load with weights_only.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            suspect = [name for name in archive.namelist() if not _is_harmless(archive, name)]
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, RecursionError) as error:
        raise _damaged(path, error) from error
    if suspect:
        raise SourceError(
            f"{path} holds pickled objects that can run code while loading: {', '.join(suspect[:5])}.",
            remedy="If you trust the file, allow this with --allow-pickle.",
        )


def _is_harmless(archive: zipfile.ZipFile, name: str) -> bool:
    folders, leaf = name.split("/")[1:-1], name.rsplit("/", 1)[-1]
    if archive.getinfo(name).file_size > MAX_MODEL_BYTES:
        return False
    if leaf.endswith("_config.json"):
        payloads = json.loads(archive.read(name)).get("config", {}).values()
        return not any(entry.get("use_pickle") for entry in payloads)
    if leaf.endswith(".pt"):
        return _loads_weights_only(archive.read(name))
    # data/constants/{custom_obj,opaque_obj}_N are pickles; tensor_N and weight_N are raw bytes.
    return "constants" not in folders or leaf.startswith("tensor_")


def _loads_weights_only(data: bytes) -> bool:
    import torch

    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:  # whatever weights_only refuses, torch.export.load would unpickle freely
        return len(data) == 0
    return True


def load_pt(path: Path, allow_pickle: bool) -> TorchSource:
    """Load a pickled nn.Module, if that is allowed. Raises SourceError that says what else to give."""
    import torch

    _check_file(path)
    advice = "Give module:factory, or save the model with torch.export.save as .pt2."
    if zipfile.is_zipfile(path) and _is_torchscript(path):
        raise SourceError(f"{path} is a TorchScript archive, which torch no longer exports.", remedy=advice)
    try:
        loaded = torch.load(path, weights_only=not allow_pickle, map_location="cpu")
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and more
        if allow_pickle:
            raise _damaged(path, error) from error
        raise SourceError(
            f"{path} is damaged, or more than plain tensors, and loading such a pickle can run code.",
            remedy=f"{advice} If you trust the file, allow this with --allow-pickle.",
        ) from error
    if not isinstance(loaded, torch.nn.Module):
        raise SourceError(
            f"{path} holds a {type(loaded).__name__} (weights, not the network that uses them).", remedy=advice
        )
    return TorchSource(loaded, None, path, exported=False)


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def load_factory(source: str) -> TorchSource:
    """Call ``package.module:factory`` or ``path/file.py:factory``; it returns a module, or (module, example inputs).

    Naming Python code on the command line is consent to run it.

    Raises:
        SourceError: nothing of that name, it fails, or it returns something else.
    """
    import torch

    place, _, name = source.rpartition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise SourceError(f"{place} has no function {name!r}.", remedy="Name a function that returns the model.")
    try:
        made = factory()
    except Exception as error:  # anybody's code
        raise SourceError(f"{source} failed: {first_cause(error)}", remedy="Call the function by itself.") from error
    network, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if not isinstance(network, torch.nn.Module) or not (examples is None or isinstance(examples, (tuple, list))):
        raise SourceError(
            f"{source} returned {type(network).__name__}.", remedy="Return an nn.Module, or (module, example inputs)."
        )
    file = getattr(module, "__file__", None)
    return TorchSource(network, tuple(examples) if examples is not None else None, Path(file) if file else None, False)


def _import_module(name: str) -> Any:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a console script has its own folder there, not the caller's
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing is running
        raise SourceError(
            f"{name} cannot be imported: {first_cause(error)}", remedy="Run from the folder that holds the module."
        ) from error


def _import_file(path: Path) -> Any:
    _check_file(path)
    name = f"edgewright_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling inside the file look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # importing is running
        del sys.modules[name]
        raise SourceError(
            f"{path} cannot be imported: {first_cause(error)}", remedy="Run the file by itself."
        ) from error
    return module


def first_cause(error: BaseException) -> str:
    """One line for the error at the bottom of a chain: what went wrong, not how it was reported."""
    while (deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = deeper
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
