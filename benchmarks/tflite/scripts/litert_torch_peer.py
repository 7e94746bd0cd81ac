"""Runs in the peers' environment: NET SIZE DATA.npy FLOAT.tflite [INT8.tflite].

The net goes from PyTorch through litert-torch; INT8 through ai-edge-quantizer's recipe for static 8-bit weights and activations.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    name, _, data, plain, *quantized = sys.argv[1:]
    import numpy as np

    images = np.load(data)
    if not Path(plain).exists():
        import litert_torch
        import torch

        from tests.timm_models import create

        litert_torch.convert(create(name), (torch.from_numpy(images[:1]),)).export(plain)
    if quantized:
        from ai_edge_quantizer import quantizer, recipe

        tool = quantizer.Quantizer(plain, recipe.static_wi8_ai8())
        key = _input_name(plain)
        samples = {"serving_default": [{key: image[None]} for image in images]}
        tool.quantize(tool.calibrate(samples, num_threads=1), serialize_to_path=quantized[0])


def _input_name(path: str) -> str:
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_path=path).get_signature_list()["serving_default"]
    return str(signature["inputs"][0])


if __name__ == "__main__":
    main()
