"""The name of a model, from where it lies."""

from __future__ import annotations

import re
from pathlib import PurePath


def model_name(source: str) -> str:
    """``nets/kws.onnx`` -> ``kws``; ``nets/model.onnx`` -> ``nets``; ``zoo.py:digits`` and ``zoo:digits`` -> ``digits``.

    The result fits file names and manifests: letters, digits, ``.``, ``_`` and ``-``.
    """
    _, colon, factory = source.rpartition(":")
    path = PurePath(source)
    stem = factory if colon and factory.isidentifier() else path.stem
    if stem in ("model", "saved_model") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"
