"""report.json read back into the values that wrote it."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from compiler.errors import DataError
from compiler.report.schema import SCHEMA, Report

NAME = "report.json"


def read_report(folder: Path) -> Report:
    """The report of a build.

    Raises:
        DataError: there is none, or it follows another schema.
    """
    path = folder / NAME
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']!r}, expected {SCHEMA!r}")
        report = _value(Report, document)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.", remedy="Give the output folder of a build.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no report of a build: {error}.", remedy="Build the model again.") from error
    assert isinstance(report, Report)
    return report


def _value(kind: Any, value: Any) -> Any:
    """``value`` from JSON as ``kind``. Null stands for a number that is infinite where the type has no None."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _instance(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else _value(inner, value)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return tuple(_value(arguments[0], item) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _value(arguments[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return math.inf if kind is float and value is None else value


def _instance(kind: type, value: Mapping[str, Any]) -> Any:
    """A dataclass from the fields that it knows; the document may hold more."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    return kind(**{name: _value(hints[name], item) for name, item in value.items() if name in known})
