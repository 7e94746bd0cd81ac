"""Inputs of several sizes: the hub's static shapes with the flexible axes set free and the shapes behind them inferred anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.exporters.coreml.unsupported import Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir

Sizes = Sequence[Sequence[tuple[int, int]]]  # for each shape and axis the least and the largest size
PREFIX = "flexible_"  # of the names of free axes


def free_axes(model: ir.Model, flexible: Mapping[str, Sizes]) -> ir.Model:
    """A copy of ``model`` with symbols for the flexible axes of its inputs, and every shape behind them inferred from these.

    Axes with the same bounds and the same default share a symbol: they have the same size in every call (two inputs of one batch).

    Raises:
        Unsupported: an input does not exist, its rank differs, or the sizes leave out the one that the model was built with.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if not flexible:
        return model
    model = model.clone()
    inputs = {value.name: value for value in model.graph.inputs}
    for name, sizes in flexible.items():
        if name not in inputs:
            raise Unsupported(f"there is no input {name!r}", f"Name one of {', '.join(map(str, inputs))}.")
        _free(inputs[name], sizes)
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    result = ShapeInferencePass()(model).model
    for value in result.graph.outputs:
        if value.shape is None:
            raise Unsupported(f"the rank of output {value.name!r} depends on the sizes", "Fix the sizes of the inputs.")
    return result


def _free(value: ir.Value, sizes: Sizes) -> None:
    import onnx_ir as ir

    assert value.shape is not None
    default = tuple(int(d) for d in value.shape)  # type: ignore[arg-type]
    if len(sizes[0]) != len(default):
        raise Unsupported(f"{value.name!r} has {len(default)} axes, its sizes have {len(sizes[0])}")
    if not any(all(low <= d <= high for d, (low, high) in zip(default, shape, strict=True)) for shape in sizes):
        shown = "x".join(map(str, default))
        raise Unsupported(
            f"the sizes of {value.name!r} leave out {shown}", f"Add {shown}, which the model is built with."
        )
    dims: list[int | str] = []
    for axis, size in enumerate(default):
        low, high = min(shape[axis][0] for shape in sizes), max(shape[axis][1] for shape in sizes)
        dims.append(size if low == high else f"{PREFIX}{low}_{high}_{size}")
    value.shape = ir.Shape(dims)
