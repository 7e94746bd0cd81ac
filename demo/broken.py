"""A release that no gate has seen: the int8 model's output scale becomes NaN, as a bad flash or a careless script might do.

`edgewright build` refuses such a model; the demo signs it all the same, to show what the device does on its own.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.files import sha256_file


def break_release(build: Path, broken: Path) -> Path:
    """Copy ``build`` to ``broken`` with NaN in the TFLite artifacts and a draft that matches them."""
    shutil.copytree(build, broken)
    draft = broken / "manifest.draft.json"
    document = json.loads(draft.read_text("utf-8"))
    for artifact in document["artifacts"]:
        if artifact["format"] == "tflite":
            path = broken / artifact["path"]
            path.write_bytes(_poison(path.read_bytes()))
            artifact["sha256"] = sha256_file(path)
    draft.write_bytes(canonical_json(document))
    return broken


def _poison(model: bytes) -> bytes:
    """Overwrite the scale of the quantized output, or the last float weights, with NaN; the file stays well-formed."""
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    graph = tree.subgraphs[0]
    for operator in graph.operators:
        code = tree.operatorCodes[operator.opcodeIndex]
        if code.builtinCode == schema.BuiltinOperator.DEQUANTIZE and operator.outputs[0] in graph.outputs:
            scale = struct.pack("<f", graph.tensors[operator.inputs[0]].quantization.scale[0])
            return model.replace(scale, struct.pack("<f", float("nan")))
    weights = max((bytes(b.data) for b in tree.buffers if b.data is not None), key=len)
    return model.replace(weights, struct.pack("<f", float("nan")) * (len(weights) // 4))
