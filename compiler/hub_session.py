"""Runs a hub model, float or quantized, in onnxruntime straight from memory, with any intermediate value as an extra output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from compiler.errors import SourceError
from runtimes.errors import InferenceFailed
from runtimes.onnxruntime_session import open_exact
from runtimes.session import Array, Evidence, Feeds, RuntimeInfo, Session, SessionBase, TensorSpec, check_feeds

if TYPE_CHECKING:
    import onnxruntime as ort


def open_hub(model: ir.Model, *, taps: Sequence[str] = (), threads: int = 1) -> Session:
    """Open ``model`` in onnxruntime.

    Args:
        model: a hub model; it is not modified.
        taps: names of values to answer beside the model's outputs; names that already are outputs are ignored.
        threads: intra-op threads, 0 leaves the choice to onnxruntime.

    Raises:
        ValueError: a tap names no value of the model.
        SourceError: onnxruntime refuses the model.
    """
    import onnxruntime as ort

    data = _serialise(model, taps)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not (unsigned := _is_unsigned(model)):
        # On x86 onnxruntime otherwise rewrites int8 pairs to uint8, and where it cannot (values read twice, constant operands) the
        # mixture falls back to float kernels without a word: 6 of ResNet-8's 9 convolutions did. This key keeps int8 as written.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    # Products with int4 and int8 weights alone are float32, as the hub says; the default rounds their inputs to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 3  # warnings about folded constants are no news to anyone
    try:
        start = open_exact if unsigned else ort.InferenceSession  # int8 x int8 is exact as it is
        session = start(data, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise SourceError(
            f"onnxruntime refuses the hub model {model.graph.name!r}: {error}",
            remedy="Check that the model follows compiler/hub.py (opset, static shapes, operators onnxruntime has).",
        ) from error
    return HubSession(session, ort.__version__)


def _is_unsigned(model: ir.Model) -> bool:
    """Whether activations are uint8, as others' quantizers write them."""
    return any(value.dtype == ir.DataType.UINT8 for node in model.graph for value in node.outputs)


def _serialise(model: ir.Model, taps: Sequence[str]) -> bytes:
    """ONNX bytes of ``model`` with ``taps`` appended to the graph's outputs."""
    proto = ir.to_proto(model)
    values = {output.name: output for node in model.graph for output in node.outputs}
    present = {output.name for output in model.graph.outputs}
    for name in dict.fromkeys(taps):
        if name in present:
            continue
        if name not in values:
            raise ValueError(f"the model has no value called {name!r} to tap")
        proto.graph.output.append(ir.to_proto(values[name]))
    return bytes(proto.SerializeToString())


class HubSession(SessionBase):
    """A Session over an in-memory onnxruntime session."""

    def __init__(self, session: ort.InferenceSession, version: str) -> None:
        self._session: Any = session
        self._inputs = tuple(_spec(argument) for argument in session.get_inputs())
        self._outputs = tuple(_spec(argument) for argument in session.get_outputs())
        self._runtime = RuntimeInfo("onnxruntime", version, Evidence.EXECUTED)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def runtime(self) -> RuntimeInfo:
        return self._runtime

    def run(self, feeds: Feeds) -> dict[str, Array]:
        check_feeds(self._inputs, feeds)
        if self._session is None:
            raise InferenceFailed("The session is closed.", remedy="Open the model again.")
        try:
            results = self._session.run(None, dict(feeds))
        except Exception as error:
            raise InferenceFailed(
                f"onnxruntime failed while running the hub model: {error}",
                remedy="Check that the inputs are in the range the model was made for, and the model itself.",
            ) from error
        return {spec.name: np.asarray(array) for spec, array in zip(self._outputs, results, strict=True)}

    def close(self) -> None:
        self._session = None


def _spec(argument: Any) -> TensorSpec:
    """``argument``: an onnxruntime NodeArg; its type reads "tensor(float)"."""
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return TensorSpec(argument.name, _numpy_name(argument.type), shape)


def _numpy_name(onnx_type: str) -> str:
    word = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64", "string": "object"}.get(word, word)
