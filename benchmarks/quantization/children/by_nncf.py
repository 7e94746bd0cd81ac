"""Runs in an environment with NNCF: post-training quantization of an ONNX file."""

import json
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import onnx

job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
rows = np.load(job["data"])["calibration"]
calibration = nncf.Dataset(list(rows), lambda row: {job["input"]: row[None]})
start = time.perf_counter()
model = nncf.quantize(
    onnx.load(job["model"]),
    calibration,
    subset_size=len(rows),
    fast_bias_correction=job["options"]["fast"],
    preset=nncf.QuantizationPreset.MIXED,
)
seconds = time.perf_counter() - start
onnx.save(model, job["target"])
Path(job["result"]).write_text(json.dumps({"seconds": seconds, "version": nncf.__version__}), "utf-8")
