"""Runs in an environment with AIMET: W8A8 of an ONNX file, exported as QDQ; with AdaRound also cross-layer equalised."""

import json
import sys
import time
from pathlib import Path

import aimet_onnx
import numpy as np
import onnx
from aimet_onnx.cross_layer_equalization import equalize_model

job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
rows = np.load(job["data"])["calibration"]
feeds = [{job["input"]: row[None]} for row in rows]
iterations = job["options"]["adaround"]
start = time.perf_counter()
model = onnx.load(job["model"])
if iterations:
    equalize_model(model)
sim = aimet_onnx.QuantizationSimModel(
    model, param_type=aimet_onnx.int8, activation_type=aimet_onnx.int8, quant_scheme="tf_enhanced"
)
if iterations:
    aimet_onnx.apply_adaround(sim, feeds, num_iterations=iterations)
sim.compute_encodings(feeds)
made = sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True)
seconds = time.perf_counter() - start
onnx.save(made, job["target"])
version = getattr(aimet_onnx, "__version__", "")
Path(job["result"]).write_text(json.dumps({"seconds": seconds, "version": version}), "utf-8")
