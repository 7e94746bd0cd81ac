"""Runs in an environment with Neural Compressor: static int8 by PT2E of a PyTorch net, executed by PyTorch.

PT2E finds what to quantize by the modules that a node was traced from, which a saved torch.export program no longer knows (it would
come back in float, without a word): the net is built anew and takes the program's weights.
"""

import json
import sys
import time
from pathlib import Path

import neural_compressor
import numpy as np
import torch
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import convert, get_default_static_config, prepare

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks.quantization.nets import NETS

torch.set_num_threads(1)
job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
data = np.load(job["data"])
net = NETS[job["net"]].make()
net.load_state_dict(torch.export.load(job["model"]).state_dict)
net.eval()
rows = torch.from_numpy(data["calibration"])
start = time.perf_counter()
prepared = prepare(export(net, example_inputs=(rows[:1],)), quant_config=get_default_static_config())
with torch.no_grad():
    for row in rows:
        prepared(row[None])
    made = convert(prepared)
if not any("quantize" in str(node.target) for node in made.graph.nodes):
    sys.exit("nothing was quantized")
seconds = time.perf_counter() - start
with torch.no_grad():
    answers = np.concatenate([made(row[None]).numpy() for row in torch.from_numpy(data["samples"])])
np.save(job["answers"], answers)
torch.save(made.state_dict(), job["target"])
Path(job["result"]).write_text(json.dumps({"seconds": seconds, "version": neural_compressor.__version__}), "utf-8")
