"""Nets for the pruning tests: graph text with named weights, filled from a seed, some channels dead if asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from compiler.pruning.activations import stream
from runtimes.session import Array
from tests.compiler.hub_models import HEADER, to_hub

Shapes = Mapping[str, tuple[int, ...]]


def net(
    text: str,
    weights: Shapes,
    *,
    constants: Mapping[str, Array] | None = None,
    dead: Mapping[str, Collection[int]] | None = None,
) -> ir.Model:
    """``weights`` get seeded normal values scaled to keep variance; ``dead`` zeroes entries of axis 0; names with "var" are
    positive; ``constants`` are taken as they are."""
    random = np.random.default_rng(7)
    proto = parser.parse_model(HEADER + text)
    for name, shape in weights.items():
        fan_in = max(int(np.prod(shape[1:])), 1)
        array = random.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(fan_in) if len(shape) > 1 else 2.0)
        array = np.abs(array) + np.float32(0.5) if "var" in name else array
        for channel in (dead or {}).get(name, ()):
            array[channel] = 0
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, value in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return to_hub(proto)


def feeds(shape: tuple[int, ...], samples: int = 12, name: str = "x") -> dict[str, Array]:
    return {name: np.random.default_rng(3).normal(size=(samples, *shape)).astype(np.float32)}


def answers(model: ir.Model, data: Mapping[str, Array], name: str = "y") -> Array:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return np.concatenate([found[name] for found in stream(model, [name], data)])


def weight_shape(model: ir.Model, name: str) -> list[int]:
    return list(model.graph.initializers[name].const_value.numpy().shape)  # type: ignore[union-attr]


def parameters(model: ir.Model) -> int:
    """Counted on the model itself, for comparison with what a plan predicts."""
    arrays = [numpy_helper.to_array(tensor) for tensor in ir.to_proto(model).graph.initializer]
    return sum(array.size for array in arrays if array.dtype == np.float32)


def input_shape(model: ir.Model) -> tuple[int, ...]:
    """Shape of one sample of the first input."""
    return tuple(int(size) for size in model.graph.inputs[0].shape or () if isinstance(size, int))[1:]
