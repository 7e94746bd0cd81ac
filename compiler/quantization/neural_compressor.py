"""Intel Neural Compressor as an alternative chooser of weight scales (extra ``neural-compressor``).

Neural Compressor 3 has no ONNX adaptor any more (it went with the 2.x API), so it cannot write a quantized hub. What it offers
on plain tensors is symmetric round-to-nearest with a search for the clipping share; that is used here. Activations, the
operator rules and the writing of the hub stay ours, so whatever it chooses can be lowered to every target.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.collect import Progress
from compiler.calibration.dataset import Dataset
from compiler.errors import ExtraMissing
from compiler.quantization import engine
from compiler.quantization.plan import QuantizeOptions

# The grid of clipping shares that Neural Compressor's own search_clip walks: 1 down to 0.8.
SHARES = np.arange(1.0, 0.8, -0.005)


def quantize(
    model: ir.Model, dataset: Dataset, options: QuantizeOptions | None = None, progress: Progress | None = None
) -> engine.Quantized:
    """``engine.quantize`` with weight scales chosen by Neural Compressor.

    Raises:
        ExtraMissing: Neural Compressor is not installed.
        DataError: an activation became NaN or infinite.
    """
    _require()
    return engine.quantize(model, dataset, replace(options or QuantizeOptions(), weights="neural-compressor"), progress)


def choose_scales(rows: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per row [channels, rest] the scale of the share with the least squared error; ``scale`` where a row is all zero.

    Raises:
        ExtraMissing: Neural Compressor is not installed.
    """
    _require()
    import torch
    from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor

    weight = torch.from_numpy(rows.astype(np.float32))
    best, best_error = scale, np.full(len(rows), np.inf)
    for share in SHARES:
        codes, found, _ = quant_tensor(weight.clone(), bits=8, scheme="sym", quantile=float(share), return_int=True)
        candidate = found.numpy().reshape(-1).astype(np.float64)
        narrow = np.maximum(codes.numpy(), -127)  # it also uses -128, which LiteRT's specification forbids
        error = ((narrow * candidate[:, None] - rows) ** 2).sum(axis=1)
        better = (error < best_error) & (candidate > 0)
        best, best_error = np.where(better, candidate, best), np.where(better, error, best_error)
    return best


def _require() -> None:
    try:
        import neural_compressor.torch  # noqa: F401
    except ImportError as error:
        raise ExtraMissing(
            f"The quantizer neural-compressor cannot be used here: {error}",
            remedy="Install it with pip install 'edgewright[neural-compressor]', or use --quantizer edgewright.",
        ) from error
