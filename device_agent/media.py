"""Pictures and recordings as requests: the manifest says how they become inputs and what the outputs are called."""

from __future__ import annotations

from typing import Any

import numpy as np

from device_agent.errors import RequestError
from runtimes.artifact.manifest import Manifest
from runtimes.errors import InputMismatch
from runtimes.session import Array, Feeds

TOP = 5  # classes in an answer


def feeds_of(manifest: Manifest, data: bytes) -> dict[str, Array]:
    """The model's one input, made from a file's bytes. Raises RequestError, RuntimeMissing."""
    from runtimes.preprocess import prepare, read_preprocessing  # audio and zip modules that few agents need

    declared = [spec for spec in manifest.inputs if spec.preprocessing is not None]
    if len(manifest.inputs) != 1 or not declared:
        raise RequestError(
            f"Model {manifest.model!r} does not say how a picture or recording becomes its input.",
            remedy="Send tensors, or build the release with --preprocess.",
            status=415,
        )
    try:
        array = prepare(read_preprocessing(declared[0].preprocessing or {}), data)
    except InputMismatch as error:
        raise RequestError(error.message, remedy=error.remedy, status=400) from error
    return {declared[0].name: array.astype(declared[0].dtype)}


def classification(manifest: Manifest, outputs: Feeds) -> list[dict[str, Any]]:
    """The best classes of the first labelled output of the first sample; logits as probabilities."""
    spec = next((o for o in manifest.outputs if o.labels), None)
    if spec is None or spec.labels is None:
        return []
    scores = np.asarray(outputs[spec.name], np.float64).reshape(-1, len(spec.labels))[0]
    if spec.semantic == "logits":
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[:TOP]
    return [{"label": spec.labels[i], "index": int(i), "score": float(scores[i])} for i in best]
