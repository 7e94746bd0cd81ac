"""The manifest draft of a build: all that a release needs except its name, number and place.

`edgewright release publish` completes it. Deterministic: nothing here depends on the clock or on measured time.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.report.schema import ArtifactReport
from compiler.verification.verify import Truth
from runtimes.artifact.files import sha256_file, write_atomic
from runtimes.artifact.manifest import Manifest
from runtimes.session import Array, Samples, TensorSpec, sample_rows

DRAFT_NAME = "manifest.draft.json"
VECTORS_NAME = "selftest.npz"
VECTOR_SAMPLES = 16
MEANS_AT_ONCE = 256
BINS = 10  # deciles: the number for which DESIGN's PSI levels are stated


def write_draft(
    folder: Path,
    model: str,
    interface: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    semantics: Mapping[str, str | None],
    layouts: Mapping[str, str],
    preprocessing: Mapping[str, Mapping[str, Any]],
    labels: tuple[str, ...] | None,
    artifacts: tuple[ArtifactReport, ...],
    truth: Truth,
    provenance: Mapping[str, Any],
    documents: Mapping[str, bytes],
) -> None:
    """Write the self-test vectors and ``manifest.draft.json`` into ``folder``.

    ``interface``: the model's inputs and outputs with the batch dimension free where the hub allows it.
    ``layouts``: "NCHW" or "NHWC" by input or output name. ``preprocessing``: declarations by input (runtimes/preprocess.py).
    ``semantics``: "probabilities", "logits" or None per output name. ``documents``: JSON by name, to travel with the release.
    """
    inputs, outputs = interface
    first, rows = next(iter(truth.feeds.items())), sample_rows(inputs)
    count = len(first[1]) // rows.get(first[0], 1)
    picked = _spread(count)
    vectors = folder / VECTORS_NAME
    write_npz(
        vectors,
        {f"in/{n}": _samples(a, picked, count) for n, a in truth.feeds.items()}
        | {f"out/{n}": _samples(a, picked, count) for n, a in truth.outputs.items()},
    )
    document = {
        "schema": "edgewright.manifest/1",
        "model": model,
        "release": "draft",
        "sequence": 1,
        "created": "1970-01-01T00:00:00Z",
        "inputs": [
            _port(s, layouts) | ({"preprocessing": dict(preprocessing[s.name])} if s.name in preprocessing else {})
            for s in inputs
        ],
        "outputs": [_output(s, layouts, semantics.get(s.name), labels) for s in outputs],
        "artifacts": [_artifact(a) for a in artifacts],
        "self_test": {
            "vectors": {"path": VECTORS_NAME, "size_bytes": vectors.stat().st_size, "sha256": sha256_file(vectors)},
            **_tolerance(artifacts, len(picked)),
        },
        "drift": drift_baseline(truth, semantics),
        "quality": {"provenance": dict(provenance)},
        "documents": {name: _document(folder, name, data) for name, data in documents.items()},
    }
    write_atomic(folder / DRAFT_NAME, Manifest.model_validate(document).to_bytes())


def _document(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    path = f"documents/{name}.json"
    (folder / "documents").mkdir(exist_ok=True)
    write_atomic(folder / path, data)
    return {"path": path, "size_bytes": len(data), "sha256": sha256_file(folder / path)}


def _port(spec: TensorSpec, layouts: Mapping[str, str]) -> dict[str, Any]:
    port: dict[str, Any] = {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
    return port | ({"layout": layouts[spec.name]} if spec.name in layouts else {})


def _output(
    spec: TensorSpec, layouts: Mapping[str, str], semantic: str | None, labels: tuple[str, ...] | None
) -> dict[str, Any]:
    output = _port(spec, layouts)
    if semantic:
        output["semantic"] = semantic
    if labels and spec.shape and spec.shape[-1] == len(labels):
        output["labels"] = list(labels)
    return output


def _artifact(report: ArtifactReport) -> dict[str, Any]:
    quality: dict[str, Any] = {
        "max_abs_error": float(report.parity.max_abs_error),
        "agreement": report.parity.agreement,
        "evidence": report.evidence,
    }
    if report.accuracy:
        quality["accuracy"] = [report.accuracy.value, report.accuracy.low, report.accuracy.high]
    entry = {
        "path": report.path,
        "size_bytes": report.size_bytes,
        "sha256": report.sha256,
        "format": report.format,
        "precision": report.precision,
        "runtime": report.runtime if report.format != "coreml" else "coreml",
        "profiles": list(report.profiles) or ["generic"],
        "quality": quality,
    }
    return entry | ({"archive": "zip"} if report.path.endswith(".mlpackage") else {})


def _tolerance(artifacts: tuple[ArtifactReport, ...], samples: int) -> dict[str, float]:
    """Twice the largest error measured here, because the device's kernels round differently; one more flipped sample than here."""
    error = max(a.parity.max_abs_error for a in artifacts)
    shares = [a.parity.agreement for a in artifacts if a.parity.agreement is not None]
    agreed = max(0.0, min(shares) - 2 / samples) if shares else 0.0
    return {"max_abs_error": max(2 * float(error), 1e-4), "min_agreement": agreed}


def _samples(array: Samples, picked: Array, count: int) -> Array:
    """The picked samples of ``count``, each of as many rows as ``array`` has for it (one, unless the model has no batch axis)."""
    rows = max(1, len(array) // count)
    return np.asarray(array[(picked[:, np.newaxis] * rows + np.arange(rows)).ravel()])


def _spread(count: int) -> Array:
    """Indices of the vectors: spread over the data, so that sorted data sets give more than one class."""
    return np.unique(np.linspace(0, count - 1, min(count, VECTOR_SAMPLES)).astype(np.int64))


def _means(feed: Samples) -> Array:
    """Per sample, [samples] float64; read piece by piece."""
    pieces = (feed[start : start + MEANS_AT_ONCE] for start in range(0, len(feed), MEANS_AT_ONCE))
    return np.concatenate([piece.reshape(len(piece), -1).astype(np.float64).mean(axis=1) for piece in pieces])


def drift_baseline(truth: Truth, semantics: Mapping[str, str | None]) -> dict[str, Any]:
    """Histograms of the reference data on its own deciles: per-sample input means, confidence, predicted classes."""
    baseline: dict[str, Any] = {"inputs": {}}
    for name, feed in truth.feeds.items():
        baseline["inputs"][name] = _histogram(_means(feed))
    first, outputs = next(iter(truth.outputs.items()))
    semantic = semantics.get(first)
    if semantic and outputs.ndim == 2:
        scores = outputs.astype(np.float64)
        if semantic == "logits":
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        baseline["confidence"] = _histogram(scores.max(axis=1))
        baseline["classes"] = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1]).tolist()
    return baseline


def _histogram(values: Array) -> dict[str, Any]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz with fixed dates and order: the same arrays give the same bytes (numpy.savez stamps the clock)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.save(member, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    write_atomic(path, buffer.getvalue())
