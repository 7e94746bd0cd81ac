"""The child process of the TensorFlow importer: ``convert SOURCE ONNX`` and ``run SOURCE IN OUT``. Never imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

OPSET = 18  # the newest that tf2onnx 1.17 writes


def _load(source: str) -> tuple[Any, list[Any]]:
    """(function over positional tensors, its input signature) of a Keras file or a SavedModel's serving signature."""
    import tensorflow as tf

    if Path(source).is_dir():
        loaded = tf.saved_model.load(source)
        serving = loaded.signatures["serving_default"]
        names = sorted(serving.structured_input_signature[1])
        specs = [serving.structured_input_signature[1][name] for name in names]
        # The bound signature does not keep what was loaded alive.
        return lambda *args, _keep=loaded: serving(**dict(zip(names, args, strict=True))), specs
    model = tf.keras.models.load_model(source, compile=False)  # safe_mode: lambdas in the file are refused
    specs = [tf.TensorSpec(x.shape, x.dtype, name=x.name.split(":")[0]) for x in model.inputs]
    return lambda *args: model(args[0] if len(args) == 1 else list(args), training=False), specs


def _flat(result: Any) -> list[Any]:
    import tensorflow as tf

    return list(tf.nest.flatten(result))


def convert(source: str, destination: str) -> str:
    """Write the ONNX file; return the specs of the source as JSON. from_function works where from_keras fails."""
    import tensorflow as tf
    import tf2onnx

    function, specs = _load(source)
    wrapped = tf.function(lambda *args: _flat(function(*args)), input_signature=specs)
    proto, _ = tf2onnx.convert.from_function(wrapped, input_signature=specs, opset=OPSET)
    Path(destination).write_bytes(proto.SerializeToString())
    traced = wrapped.get_concrete_function().outputs
    return json.dumps(
        {
            "version": tf.__version__,
            "inputs": [_spec(v.name, t) for v, t in zip(proto.graph.input, specs, strict=True)],
            "outputs": [_spec(v.name, t) for v, t in zip(proto.graph.output, traced, strict=True)],
        }
    )


def _spec(name: str, tensor: Any) -> list[Any]:
    return [name, tensor.dtype.name, list(tensor.shape)]


def run(source: str, fed: str, got: str) -> str:
    """Run once: arrays "arr_0", "arr_1" and so on of an .npz in, the same out."""
    import tensorflow as tf

    function, specs = _load(source)
    with np.load(fed) as arrays:
        results = _flat(function(*[tf.constant(arrays[f"arr_{i}"]) for i in range(len(specs))]))
    np.savez(got, *[np.asarray(tensor) for tensor in results])
    return "done"


if __name__ == "__main__":
    print(convert(*sys.argv[2:]) if sys.argv[1] == "convert" else run(*sys.argv[2:]))
