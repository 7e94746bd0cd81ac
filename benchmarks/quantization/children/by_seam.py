"""Runs in a peer's environment with our packages on the path: ``--quantizer NAME`` where NAME needs that environment."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hubfacts import hub_inputs
from compiler.quantization.engine import QUANTIZERS
from compiler.quantization.plan import QuantizeOptions
from profiles.schema import Precision

job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
hub = ir.load(job["model"])
data = make_dataset({job["input"]: np.load(job["data"])["calibration"]}, hub_inputs(hub), where="benchmark")
quantizer = QUANTIZERS.get(job["options"]["quantizer"])
quantizer(hub, data.take(1), QuantizeOptions())  # imports are not counted
start = time.perf_counter()
made = quantizer(hub, data, QuantizeOptions())
seconds = time.perf_counter() - start
EXPORTERS.get("onnx").export(made.model, Path(job["target"]), ExportOptions(Precision.INT8))
Path(job["result"]).write_text(json.dumps({"seconds": seconds}), "utf-8")
