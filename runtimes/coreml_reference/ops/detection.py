"""non_maximum_suppression. Source: coremltools MIL ops, iOS15 and iOS17 tensor_operation.py."""

from __future__ import annotations

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array


@evaluates("non_maximum_suppression")
def non_maximum_suppression(call: Call) -> tuple[Array, ...]:
    """Boxes (x, y, width, height) around their centres, kept in descending order of their best score while none kept overlaps more.

    iOS15: boxes [n, B, 4], scores [n, B, K], a score threshold and the number of boxes as fourth result. iOS17: boxes [n, 4, B],
    scores [n, K, B]. What is left of ``max_boxes`` is filled with zeros, and with -1 for the indices; the documentation says only
    that it is padded.
    """
    boxes, scores = call.wide("boxes"), call.wide("scores")
    old = call.has("score_threshold")
    if not old:
        boxes, scores = boxes.transpose(0, 2, 1), scores.transpose(0, 2, 1)
    if boxes.ndim != 3 or scores.ndim != 3 or boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape[:2]:
        raise ValueError(f"boxes {list(boxes.shape)} and scores {list(scores.shape)} do not fit")
    most, (n, _, classes) = call.int("max_boxes"), scores.shape
    check_size([n, most, max(4, classes)], 4)
    kept_boxes, kept_scores = np.zeros((n, most, 4), np.float32), np.zeros((n, most, classes), np.float32)
    indices, counts = np.full((n, most), -1, np.int64), np.zeros(n, np.int64)
    least = call.float("score_threshold", -np.inf)
    for i in range(n):
        kept = _kept(boxes[i], scores[i], call.float("iou_threshold"), least, call.bool("per_class_suppression"))[:most]
        counts[i] = len(kept)
        kept_boxes[i, : len(kept)], kept_scores[i, : len(kept)] = boxes[i, kept], scores[i, kept]
        indices[i, : len(kept)] = kept
    if old:
        return kept_boxes, kept_scores, indices, counts
    return kept_boxes.transpose(0, 2, 1), kept_scores.transpose(0, 2, 1), indices


def _kept(boxes: Array, scores: Array, most_overlap: float, least: float, per_class: bool) -> list[int]:
    best, label = scores.max(axis=1), scores.argmax(axis=1)
    kept: list[int] = []
    for i in np.argsort(-best, kind="stable"):
        if best[i] < least:
            break
        rivals = [k for k in kept if not per_class or label[k] == label[i]]
        if not rivals or float(_overlap(boxes[i], boxes[rivals]).max()) <= most_overlap:
            kept.append(int(i))
    return kept


def _overlap(box: Array, others: Array) -> Array:
    """Intersection over union of one box with others [m, 4]."""
    low = np.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(box[2:]) + np.prod(others[:, 2:], axis=1) - shared
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1), 0))
