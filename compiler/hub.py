"""The hub: the one intermediate form that importers produce and exporters read.

A hub model is an ``onnx_ir.Model`` with
  - IR version 10 and exactly opset HUB_OPSET of the default domain (onnxruntime 1.31 refuses what onnx 1.23 writes by default);
  - float32 weights and activations (int64/int32/bool where the operator's definition has them);
  - static shapes inferred for every value, the batch size given explicitly (1 unless asked otherwise); a graph output that one of
    SIZED_BY_DATA gives has a free axis;
  - a unique, non-empty name on every node and value; inputs and outputs keep the source's names;
  - initializers as tensors in memory, none of them graph inputs; no Constant nodes, no functions, no external data;
  - no stack traces or absolute paths in metadata.

A *quantized hub* is the same in QDQ form (compiler/quantization/perform.py writes it):
  - activation: QuantizeLinear -> DequantizeLinear with scalar scale and int8 zero point; every consumer reads the
    DequantizeLinear's output; a graph output is the DequantizeLinear's output under the original name;
  - weight: int8 initializer, zero point 0, -> DequantizeLinear with scale[channels] and ``axis``;
  - bias: int32 initializer -> DequantizeLinear with scale = scale_in * scale_weight, axis 0;
  - a Conv/Gemm/MatMul/Add followed by Relu or Clip(0, 6) has no pair between the two (they fuse in every runtime);
  - a node left in float has no pair on its outputs, unless an int8 node reads them;
  - every node's metadata says under "edgewright.precision" whether it is "int8" or "float32".

The other integer precisions are QDQ models of the same kind; what differs, by profiles.schema.Precision:
  - INT16X8: activations are int16 with zero point 0; weights int8 and biases int32 as above (scale = scale_in * scale_weight);
  - INT8_WEIGHTS: no activation is quantized and no bias; only weights are int8 -> DequantizeLinear with ``axis``;
  - INT8_DYNAMIC: the same hub as INT8_WEIGHTS; the exporter lowers to kernels that quantize activations as they come;
  - INT4_WEIGHTS: as INT8_WEIGHTS with INT4 initializers, zero point 0, and either scale[channels] with ``axis`` or, with
    ``block_size`` along the reduction axis, scale[.., ceil(K / block_size), ..] as ONNX opset 21 has it. Weights that lose
    too much in four bits stay int8;
  - PALETTIZED*, SPARSE, SPARSE_PALETTIZED*: a float hub whose large weights hold few distinct values per group of channels, or
    zeros; the model's metadata says which (compiler/quantization/palettes.py);
  - SPARSE_INT8: as INT8_WEIGHTS, with zeros, and the same metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtimes.session import Session

HUB_OPSET = 21
HUB_IR_VERSION = 10
# The size of their results is known at run time alone; only graph outputs may be.
SIZED_BY_DATA = ("NonMaxSuppression", "NonZero")
KEEP_FLOAT32 = "edgewright.float32"  # node metadata: why a float16 artifact computes the node in float32


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where a model came from: ``kind`` is the importer's name, ``sha256`` the digest of the source's bytes."""

    kind: str
    location: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Imported:
    """An importer's result: the hub model and the source itself as a session, the truth that every artifact is held against."""

    model: ir.Model
    reference: Session
    source: SourceInfo
