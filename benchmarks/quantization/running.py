"""Runs .onnx files so that nobody loses by a kernel's rounding: integer kernels where they are exact, else as the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtimes.session import Array, Session, run_dataset


def run_file(path: Path, samples: Array) -> Array:
    """The first output over all samples, one by one, [count, columns].

    onnxruntime's optimiser fails on some peers' files (nodes that share an int8 constant, int8 beside uint8 activations). Those
    run unoptimised: the QDQ model as it is written, in float arithmetic between the pairs.
    """
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    try:
        session = _open(path, levels.ORT_ENABLE_ALL)
        session.run(None, {session.get_inputs()[0].name: samples[:1]})
    except Exception:  # onnxruntime's exceptions share no base class
        session = _open(path, levels.ORT_DISABLE_ALL)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: row[np.newaxis]})[0].reshape(1, -1) for row in samples])


def _open(path: Path, level: object):  # type: ignore[no-untyped-def]
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    settings.graph_optimization_level = level
    settings.add_session_config_entry("session.x64quantprecision", "1")  # see runtimes/onnxruntime_session.py
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def run_session(session: Session, samples: Array) -> Array:
    """As ``run_file``, with an open session."""
    found = run_dataset(session, {session.inputs[0].name: samples}, 1)[session.outputs[0].name]
    return found.reshape(len(samples), -1)
