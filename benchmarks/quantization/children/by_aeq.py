"""Runs in an environment with ai-edge-quantizer: static int8 of a .tflite file, executed with the LiteRT beside it."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.utils import tfl_interpreter_utils

# Its calibration reads every tensor, and LiteRT's delegate keeps the output of a leading RESHAPE to itself ("Tensor data is
# null"): built-in kernels for it, and for the result as well.
plain = tfl_interpreter_utils.create_tfl_interpreter


def without_delegate(model, use_xnnpack=True, **options):  # type: ignore[no-untyped-def]
    return plain(model, use_xnnpack=False, **options)


tfl_interpreter_utils.create_tfl_interpreter = without_delegate


def interpreter_of(path: str) -> Interpreter:
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=path, num_threads=1, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    return interpreter


job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
data = np.load(job["data"])
signatures = interpreter_of(job["model"]).get_signature_list()
key, names = next(iter(signatures.items()))
feed = names["inputs"][0]
start = time.perf_counter()
made = quantizer.Quantizer(job["model"])
made.load_quantization_recipe(recipe.static_wi8_ai8())
ranges = made.calibrate({key: [{feed: row[None]} for row in data["calibration"]]}, num_threads=1)
made.quantize(ranges).export_model(job["target"], overwrite=True)
seconds = time.perf_counter() - start

interpreter = interpreter_of(job["target"])
taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
answers = []
for row in data["samples"]:
    value = row[None]
    if np.issubdtype(taken["dtype"], np.integer) and value.dtype == np.float32:
        scale, point = taken["quantization"]
        limits = np.iinfo(taken["dtype"])
        value = np.clip(np.rint(value / scale) + point, limits.min, limits.max).astype(taken["dtype"])
    interpreter.set_tensor(taken["index"], value)
    interpreter.invoke()
    found = interpreter.get_tensor(given["index"])
    if np.issubdtype(given["dtype"], np.integer):
        scale, point = given["quantization"]
        found = (found.astype(np.float32) - point) * np.float32(scale)
    answers.append(found.reshape(1, -1))
np.save(job["answers"], np.concatenate(answers).astype(np.float32))
Path(job["result"]).write_text(json.dumps({"seconds": seconds}), "utf-8")
