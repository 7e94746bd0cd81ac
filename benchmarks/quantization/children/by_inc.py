"""Runs in an environment with Neural Compressor: static int8 by PT2E of a torch.export program, executed by PyTorch."""

import json
import sys
import time
from pathlib import Path

import neural_compressor
import numpy as np
import torch
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import convert, get_default_static_config, prepare

torch.set_num_threads(1)
job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
data = np.load(job["data"])
net = torch.export.load(job["model"]).module()
net.eval = lambda: net  # exported in evaluation mode; a program refuses to be asked for it again, and export() asks
rows = torch.from_numpy(data["calibration"])
start = time.perf_counter()
prepared = prepare(export(net, example_inputs=(rows[:1],)), quant_config=get_default_static_config())
with torch.no_grad():
    for row in rows:
        prepared(row[None])
    made = convert(prepared)
seconds = time.perf_counter() - start
with torch.no_grad():
    answers = np.concatenate([made(row[None]).numpy() for row in torch.from_numpy(data["samples"])])
np.save(job["answers"], answers)
torch.save(made.state_dict(), job["target"])
Path(job["result"]).write_text(json.dumps({"seconds": seconds, "version": neural_compressor.__version__}), "utf-8")
