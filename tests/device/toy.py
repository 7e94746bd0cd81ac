"""y = x * w + b as a .tflite file, written with LiteRT's schema alone: the simulator's model for boards without onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np


def toy_tflite(w: float, b: float, width: int = 4) -> bytes:
    """float32[?, width] -> float32[?, width]; the first axis is free by its shape signature."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as fb

    def tensor(name: str, shape: list[int], buffer: int = 0) -> Any:
        made = fb.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, fb.TensorType.FLOAT32, buffer
        made.shapeSignature = [-1, *shape[1:]] if len(shape) == 2 else None
        return made

    def constant(value: float) -> Any:
        made = fb.BufferT()
        made.data = list(np.full(1, value, np.float32).tobytes())
        return made

    def operator(code: int, inputs: list[int], output: int, options: Any, kind: int) -> Any:
        made = fb.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        made.builtinOptions, made.builtinOptionsType = options, kind
        return made

    def code(builtin: int) -> Any:
        made = fb.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = builtin
        return made

    graph, model = fb.SubGraphT(), fb.ModelT()
    graph.tensors = [
        tensor("x", [1, width]), tensor("w", [1], 1), tensor("b", [1], 2), tensor("scaled", [1, width]), tensor("y", [1, width]),
    ]  # fmt: skip
    graph.inputs, graph.outputs = [0], [4]
    graph.operators = [
        operator(0, [0, 1], 3, fb.MulOptionsT(), fb.BuiltinOptions.MulOptions),
        operator(1, [3, 2], 4, fb.AddOptionsT(), fb.BuiltinOptions.AddOptions),
    ]
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [code(fb.BuiltinOperator.MUL), code(fb.BuiltinOperator.ADD)]
    model.buffers = [fb.BufferT(), constant(w), constant(b)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
