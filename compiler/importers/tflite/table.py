"""The table of TFLite operators that the importer reads: ``@reads("CONV_2D")`` registers one function."""

from __future__ import annotations

from collections.abc import Callable

from compiler.importers.tflite.builder import Builder
from compiler.importers.tflite.reader import Operator

Reading = Callable[[Builder, Operator], None]
READINGS: dict[str, Reading] = {}


def reads(*types: str) -> Callable[[Reading], Reading]:
    def register(function: Reading) -> Reading:
        for name in types:
            if name in READINGS:
                raise ValueError(f"{name} is registered twice")
            READINGS[name] = function
        return function

    return register
