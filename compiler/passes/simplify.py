"""Constant folding and general simplification by onnxsim, and shape inference by onnx."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compiler.errors import ExtraMissing, SourceError
from compiler.passes.base import PassResult
from compiler.passes.carried import keep_carried_shapes
from compiler.passes.serialize import from_bytes, to_bytes


class Simplify:
    """Runs onnxsim in memory. It had the best node counts of the tools compared and repairs exported LSTMs."""

    name = "simplify"

    def __call__(self, model: ir.Model) -> PassResult:
        try:
            import onnxsim
        except ImportError as error:
            raise ExtraMissing(
                f"onnxsim cannot be imported: {error}.", remedy="Run pip install 'edgewright[compiler]'."
            ) from error
        before = to_bytes(model)
        try:
            proto, _ = onnxsim.simplify(onnx.load_model_from_string(before), check_n=0)
        except Exception as error:  # a C++ library: RuntimeError, ValueError and its own, by no common base
            raise SourceError(
                f"onnxsim cannot simplify the model: {str(error).strip().splitlines()[0] if str(error) else error!r}",
                remedy="Check the model with onnx.checker and run it once in onnxruntime.",
            ) from error
        after = from_bytes(proto.SerializeToString(deterministic=True))
        return PassResult(after, to_bytes(after) != before)


class InferShapes:
    """Infers every shape anew from the inputs, so that no symbol or guess of the source's exporter survives."""

    name = "infer_shapes"

    def __call__(self, model: ir.Model) -> PassResult:
        before = to_bytes(model)
        proto = onnx.load_model_from_string(before)
        del proto.graph.value_info[:]
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        except Exception as error:  # onnx raises InferenceError, ValueError and RuntimeError from C++
            raise SourceError(
                f"The shapes of the model contradict each other: {str(error).strip().splitlines()[0]}",
                remedy="Check the model with onnx.checker.check_model(path, full_check=True).",
            ) from error
        after = keep_carried_shapes(from_bytes(inferred.SerializeToString(deterministic=True)))
        _restore_unknown_outputs(after, model)
        after = keep_carried_shapes(after)
        return PassResult(after, to_bytes(after) != before)


def _restore_unknown_outputs(after: ir.Model, before: ir.Model) -> None:
    """An output whose shape depends on data keeps what the source said about it."""
    for new, old in zip(after.graph.outputs, before.graph.outputs, strict=True):
        if new.shape is None:
            new.shape = old.shape
