"""Pruning and quantization as cached stages: a model in, a model and its section of the report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.cache import Cache
from compiler.calibration.data import Dataset
from compiler.passes.serialize import from_bytes, to_bytes
from compiler.progress import Progress
from runtimes.artifact.canonical import canonical_json


def _stage(
    name: str, key: Any, produce: Any, cache: Cache, scratch: Path, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Run ``produce(advance) -> (model, section)`` unless its result is cached."""
    with progress.stage(name) as advance:

        def fill(folder: Path) -> None:
            model, section = produce(advance)
            (folder / "hub.onnx").write_bytes(to_bytes(model))
            (folder / "section.json").write_bytes(canonical_json(section))

        folder, cached = cache.stage(name, key, fill, scratch)
    if cached:
        progress.note(f"{name}: result found in the cache")
    return from_bytes((folder / "hub.onnx").read_bytes()), json.loads((folder / "section.json").read_bytes())


def prune_stage(
    hub: ir.Model, data: Dataset, share: float, cache: Cache, scratch: Path, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Remove ``share`` of the channels and repair their consumers on ``data``."""
