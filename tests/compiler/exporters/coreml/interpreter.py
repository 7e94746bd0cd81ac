"""Runs a saved .mlpackage in torch, for tests: the operations that the exporter emits, after Apple's documentation of MIL.

It shares nothing with the exporter: the program comes from coremltools' own reader of the saved file.
Float16 is emulated by rounding every result that the program declares float16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Run = Callable[..., Any]


def run_package(path: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Execute ``path`` on ``feeds``; both sides use the model's own names."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(path))
    program = load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    user = spec.description.metadata.userDefined
    originals = json.loads(user["edgewright.inputs"])
    outputs = json.loads(user["edgewright.outputs"])
    values: dict[str, Any] = {}
    for feature in spec.description.input:
        array = feeds[originals[feature.name]]
        assert list(feature.type.multiArrayType.shape) == list(array.shape)
        values[feature.name] = torch.from_numpy(
            np.asarray(array, np.int32 if array.dtype.kind in "iub" else array.dtype)
        )
    for operation in program.functions["main"].operations:
        _execute(operation, values)
    return {original: values[name].numpy() for name, original in outputs.items()}


def _execute(operation: Any, values: dict[str, Any]) -> None:
    kind = operation.op_type
    if kind == "const":
        values[operation.outputs[0].name] = _constant(operation.outputs[0].val)
        return
    if kind.startswith("constexpr_"):
        decoded = _decoded(operation, values)
        for variable, array in zip(operation.outputs, decoded, strict=True):
            values[variable.name] = _constant(array)
        return
    arguments: dict[str, Any] = {}
    for name, variable in operation.inputs.items():
        if variable is None:
            continue
        several = isinstance(variable, (list, tuple))
        arguments[name] = [_read(v, values) for v in variable] if several else _read(variable, values)
    results = OPERATIONS[kind](**arguments)
    for variable, result in zip(operation.outputs, results if isinstance(results, tuple) else (results,), strict=True):
        assert tuple(result.shape) == tuple(variable.shape or ()), (operation.name, result.shape, variable.shape)
        values[variable.name] = result


def _decoded(operation: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    """What coremltools decodes; a chain of constexpr operations, which it does not follow everywhere, step by step."""
    inputs = [v for v in operation.inputs.values() if v is not None]
    if any(v.name in values and v.op is not None and v.op.op_type.startswith("constexpr_") for v in inputs):
        named = {k: values[v.name].numpy() if v.name in values else v.val for k, v in operation.inputs.items() if v}
        result = type(operation).decompress(**named, **({"vector_axis": None} if "lut" in named else {}))
    else:
        result = operation.materialized_val_inference()
    return result if isinstance(result, tuple) else (result,)


def program_of(path: Path) -> Any:
    """The main function, as coremltools reads it."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(path))
    program = load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    return program.functions["main"]


def _read(variable: Any, values: dict[str, Any]) -> Any:
    if variable.name in values:
        return values[variable.name]
    return _constant(variable.val)


def _constant(value: Any) -> Any:
    if isinstance(value, (str, bool, np.str_)):
        return value
    return torch.from_numpy(np.array(value))


def _int(value: Any) -> int:
    return int(value)


def _ints(value: Any) -> list[int]:
    return [int(v) for v in value.reshape(-1)]


def _wide(function: Run) -> Run:
    """Compute float16 in float32 and round once, as the emulation of an exact unit does."""

    def run(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        if x.dtype != torch.float16:
            return function(x, *rest, **named)  # type: ignore[no-any-return]
        wide = {k: v.float() if isinstance(v, Tensor) and v.dtype == torch.float16 else v for k, v in named.items()}
        return function(x.float(), *rest, **wide).to(torch.float16)  # type: ignore[no-any-return]

    return run


def _one(function: Run) -> Run:
    return lambda x: function(x)


def _two(function: Run) -> Run:
    return lambda x, y: function(x, y)


def _pad_spatial(x: Tensor, pad: Any, value: float) -> Tensor:
    pairs = _ints(pad)
    flat = [p for i in reversed(range(len(pairs) // 2)) for p in (pairs[2 * i], pairs[2 * i + 1])]
    return F.pad(x, flat, value=value)


def _conv(
    x: Tensor, weight: Tensor, strides: Any, pad: Any, dilations: Any, groups: Any, pad_type: str, bias: Any = None
) -> Tensor:
    assert pad_type == "custom"
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    return function(_pad_spatial(x, pad, 0), weight, bias, _ints(strides), 0, _ints(dilations), _int(groups))


def _conv_transpose(
    x: Tensor, weight: Tensor, strides: Any, pad: Any, dilations: Any, groups: Any, pad_type: str, bias: Any = None
) -> Tensor:
    function = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}[x.ndim]
    full = function(x, weight, bias, _ints(strides), 0, 0, _int(groups), _ints(dilations))
    pairs = _ints(pad)
    cut = [slice(None), slice(None)]
    cut += [slice(pairs[2 * i], full.shape[2 + i] - pairs[2 * i + 1]) for i in range(x.ndim - 2)]
    return full[tuple(cut)]


def _max_pool(x: Tensor, kernel_sizes: Any, strides: Any, pad: Any, pad_type: str, ceil_mode: Any) -> Tensor:
    function = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.ndim]
    result: Tensor = function(_pad_spatial(x, pad, -torch.inf), _ints(kernel_sizes), _ints(strides))
    return result


def _avg_pool(
    x: Tensor,
    kernel_sizes: Any,
    strides: Any,
    pad: Any,
    pad_type: str,
    ceil_mode: Any,
    exclude_padding_from_average: Any,
) -> Tensor:
    function = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    sums = function(_pad_spatial(x, pad, 0), _ints(kernel_sizes), _ints(strides))
    if not exclude_padding_from_average:
        return sums
    return sums / function(_pad_spatial(torch.ones_like(x), pad, 0), _ints(kernel_sizes), _ints(strides))


def _column(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_norm(x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, epsilon: Any) -> Tensor:
    scale = gamma / torch.sqrt(variance + epsilon)
    return (x - _column(mean, x)) * _column(scale, x) + _column(beta, x)


def _layer_norm(x: Tensor, axes: Any, epsilon: Any, gamma: Any = None, beta: Any = None) -> Tensor:
    return F.layer_norm(x, [x.shape[a] for a in _ints(axes)], gamma, beta, float(epsilon))


def _quantize(input: Tensor, scale: Tensor, zero_point: Tensor, output_dtype: str, axis: Any = None) -> Tensor:
    dtype = torch.int8 if output_dtype == "int8" else torch.uint8
    if axis is not None:
        shape = [1] * input.ndim
        shape[_int(axis)] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    limits = torch.iinfo(dtype)
    return torch.clamp(torch.round(input / scale) + zero_point.float(), limits.min, limits.max).to(dtype)


def _dequantize(input: Tensor, scale: Tensor, zero_point: Tensor, axis: Any = None) -> Tensor:
    if axis is not None:
        shape = [1] * input.ndim
        shape[_int(axis)] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (input.to(torch.int32) - zero_point.to(torch.int32)).to(scale.dtype) * scale


def _slice(x: Tensor, begin: Any, end: Any, stride: Any = None, end_mask: Any = None, **_: Any) -> Tensor:
    steps = _ints(stride) if stride is not None else [1] * x.ndim
    masks = [bool(m) for m in end_mask.reshape(-1)] if end_mask is not None else [False] * x.ndim
    slices = tuple(
        slice(b, None if mask else e, s) for b, e, s, mask in zip(_ints(begin), _ints(end), steps, masks, strict=True)
    )
    return torch.from_numpy(np.ascontiguousarray(x.numpy()[slices]))


def _pad(x: Tensor, pad: Any, mode: str, constant_val: Any) -> Tensor:
    pairs = _ints(pad)
    widths = [(0, 0)] * (x.ndim - len(pairs) // 2) + [(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)]
    if mode == "constant":
        return torch.from_numpy(np.pad(x.numpy(), widths, constant_values=constant_val.item()))
    return torch.from_numpy(np.pad(x.numpy(), widths, mode={"reflect": "reflect", "replicate": "edge"}[mode]))  # type: ignore[call-overload]


def _gather(x: Tensor, indices: Tensor, axis: Any, **_: Any) -> Tensor:
    return torch.from_numpy(np.take(x.numpy(), indices.numpy(), axis=_int(axis)))


def _grid(size: int, out: int, mode: str) -> Any:
    i = np.arange(out)
    points = {
        "UNALIGN_CORNERS": lambda: i * size / out + 0.5 * size / out - 0.5,
        "STRICT_ALIGN_CORNERS": lambda: i * (size - 1) / max(out - 1, 1),
        "DEFAULT": lambda: i * size / out,
    }[mode]()
    return np.clip(points, 0, size - 1)


def _resize_bilinear(x: Tensor, target_size_height: Any, target_size_width: Any, sampling_mode: str) -> Tensor:
    result = x.numpy().astype(np.float64)
    for axis, out in ((-2, _int(target_size_height)), (-1, _int(target_size_width))):
        points = _grid(result.shape[axis], out, sampling_mode)
        low = np.floor(points).astype(int)
        high = np.minimum(low + 1, result.shape[axis] - 1)
        part = (points - low).reshape((-1, 1) if axis == -2 else (-1,))
        result = np.take(result, low, axis) * (1 - part) + np.take(result, high, axis) * part
    return torch.from_numpy(result.astype(np.float32)).to(x.dtype)


def _nearest(x: Tensor, scale_factor_height: Any, scale_factor_width: Any) -> Tensor:
    return x.repeat_interleave(_int(scale_factor_height), -2).repeat_interleave(_int(scale_factor_width), -1)


def _cast(x: Tensor, dtype: str) -> Tensor:
    names = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "bool": torch.bool}
    names |= {"int8": torch.int8, "uint8": torch.uint8}
    return x.to(names[dtype])


def _argument(function: Run) -> Run:
    def run(x: Tensor, axis: Any, keep_dims: Any, output_dtype: str = "int32") -> Tensor:
        result: Tensor = function(x, dim=_int(axis), keepdim=bool(keep_dims)).to(torch.int32)
        return result

    return run


def _reduction(function: Callable[[Any, tuple[int, ...], bool], Any]) -> Run:
    def run(x: Tensor, axes: Any, keep_dims: Any) -> Tensor:
        narrow = x.dtype == torch.float16
        result = function(x.float().numpy() if narrow else x.numpy(), tuple(_ints(axes)), bool(keep_dims))
        return torch.from_numpy(np.asarray(result, np.float32 if narrow else x.numpy().dtype)).to(x.dtype)

    return run


def _squeeze(x: Tensor, axes: Any) -> Tensor:
    return x.squeeze(tuple(_ints(axes)))


def _expand_dims(x: Tensor, axes: Any) -> Tensor:
    return torch.from_numpy(np.expand_dims(x.numpy(), tuple(_ints(axes))))


def _depth_to_space(x: Tensor, block_size: Any) -> Tensor:
    (n, c, h, w), b = x.shape, _int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(x: Tensor, block_size: Any) -> Tensor:
    (n, c, h, w), b = x.shape, _int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


OPERATIONS: dict[str, Run] = {
    "identity": lambda x: x.clone(),
    "cast": _cast,
    "conv": _wide(_conv),
    "conv_transpose": _wide(_conv_transpose),
    "max_pool": _max_pool,
    "avg_pool": _wide(_avg_pool),
    "batch_norm": _wide(_batch_norm),
    "instance_norm": _wide(
        lambda x, gamma, beta, epsilon: F.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))
    ),
    "layer_norm": _wide(_layer_norm),
    "linear": _wide(lambda x, weight, bias=None: F.linear(x, weight, bias)),
    "matmul": _wide(lambda x, y, transpose_x, transpose_y: (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)),
    "relu": _one(torch.relu),
    "relu6": _one(F.relu6),
    "clip": lambda x, alpha, beta: torch.clamp(x, alpha, beta),
    "leaky_relu": lambda x, alpha: torch.where(x >= 0, x, x * alpha),
    "prelu": lambda x, alpha: torch.where(x >= 0, x, x * _column(alpha, x)),
    "sigmoid": _wide(torch.sigmoid),
    "tanh": _wide(torch.tanh),
    "sigmoid_hard": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "elu": _wide(lambda x, alpha: torch.where(x >= 0, x, alpha * torch.expm1(x))),
    "gelu": _wide(lambda x, mode: F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")),
    "softmax": _wide(lambda x, axis: torch.softmax(x, _int(axis))),
    "softplus": _wide(F.softplus),
    "softsign": _one(F.softsign),
    "exp": _wide(torch.exp),
    "log": _wide(lambda x, epsilon: torch.log(x + epsilon)),
    "sqrt": _one(torch.sqrt),
    "square": _one(torch.square),
    "abs": _one(torch.abs),
    "sign": _one(torch.sign),
    "floor": _one(torch.floor),
    "ceil": _one(torch.ceil),
    "round": _one(torch.round),
    "sin": _one(torch.sin),
    "cos": _one(torch.cos),
    "atan": _one(torch.atan),
    "erf": _wide(torch.erf),
    "add": _two(torch.add),
    "sub": _two(torch.sub),
    "mul": _two(torch.mul),
    "real_div": _two(torch.div),
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "pow": _two(torch.pow),
    "maximum": _two(torch.maximum),
    "minimum": _two(torch.minimum),
    "equal": _two(torch.eq),
    "not_equal": _two(torch.ne),
    "less": _two(torch.lt),
    "less_equal": _two(torch.le),
    "greater": _two(torch.gt),
    "greater_equal": _two(torch.ge),
    "logical_and": _two(torch.logical_and),
    "logical_or": _two(torch.logical_or),
    "logical_xor": _two(torch.logical_xor),
    "logical_not": _one(torch.logical_not),
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "reshape": lambda x, shape, **_: x.reshape(_ints(shape)),
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "transpose": lambda x, perm: x.permute(_ints(perm)).contiguous(),
    "concat": lambda values, axis, interleave: torch.cat(values, _int(axis)),
    "split": lambda x, split_sizes, axis: torch.split(x, _ints(split_sizes), _int(axis)),
    "tile": lambda x, reps: x.repeat(*_ints(reps)),
    "slice_by_index": _slice,
    "pad": _pad,
    "gather": _gather,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, _int(upscale_factor)),
    "resize_bilinear": _resize_bilinear,
    "upsample_nearest_neighbor": _nearest,
    "reduce_mean": _reduction(lambda x, axes, keep: np.mean(x, axes, keepdims=keep)),
    "reduce_sum": _reduction(lambda x, axes, keep: np.sum(x, axes, keepdims=keep)),
    "reduce_max": _reduction(lambda x, axes, keep: np.max(x, axes, keepdims=keep)),
    "reduce_min": _reduction(lambda x, axes, keep: np.min(x, axes, keepdims=keep)),
    "reduce_prod": _reduction(lambda x, axes, keep: np.prod(x, axes, keepdims=keep)),
    "reduce_l1_norm": _reduction(lambda x, axes, keep: np.sum(np.abs(x), axes, keepdims=keep)),
    "reduce_l2_norm": _reduction(lambda x, axes, keep: np.sqrt(np.sum(x * x, axes, keepdims=keep))),
    "reduce_sum_square": _reduction(lambda x, axes, keep: np.sum(x * x, axes, keepdims=keep)),
    "reduce_log_sum_exp": _reduction(lambda x, axes, keep: np.logaddexp.reduce(x, axes, keepdims=keep)),
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
}
