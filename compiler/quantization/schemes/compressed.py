"""Weights from a table, sparse weights, and both: smaller Core ML files, computation in float.

The hub holds the values that result (compiler/quantization/palettes.py), so that every format computes the same numbers; formats
without indices store them as floats. sparse-int8 is an INT8_WEIGHTS hub whose small weights are zero.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.collect import Calibration
from compiler.calibration.dataset import Dataset
from compiler.quantization.engine import Quantized
from compiler.quantization.palettes import Palette, palettized, sparsified, write_palettes
from compiler.quantization.perform import perform
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import FEWEST, HELD_OUT_EVERY
from compiler.quantization.schemes.rounded import noise, part
from compiler.quantization.schemes.weights import FEWEST_PER_CHANNEL, LargeWeight, int8_weights, large_weights
from compiler.quantization.spec import NodeDecision, NodePrecision, QuantizationSpec
from compiler.quantization.structure import name_of, value_name
from runtimes.session import Array

# A table may take a quarter of what the entries would as floats, else indices save nothing worth their loss.
TABLE_SHARE: Final = 4
BITS_OF_FEW: Final = 6


def _compressed(
    model: ir.Model, dataset: Dataset | None, options: QuantizeOptions, *, bits: int | None, sparse: bool
) -> Quantized:
    """``bits`` per index or None for floats; ``sparse``: the share ``options.compression.sparsity`` of each weight is zero."""
    palettes: dict[str, Palette] = {}
    arrays: dict[str, Array] = {}
    decisions = {
        name_of(n): NodeDecision(n.op_type, NodePrecision.FLOAT32, "it has no large weight") for n in model.graph
    }
    for weight in large_weights(model, options):
        name, kept = name_of(weight.node), NodePrecision.FLOAT32
        value = weight.node.inputs[weight.index]
        assert value is not None
        tensor = value_name(value)
        if name in options.keep_float:
            reason = "kept in float by request"
        elif isinstance(palette := _palette(weight, options, bits, sparse), str):
            reason = palette
        else:
            if tensor not in arrays:
                palettes[tensor], arrays[tensor] = palette, _values(weight.array, palette, options)
            kept, reason = NodePrecision.WEIGHTS, _describe(weight.array, arrays[tensor], palettes[tensor])
        decisions[name] = NodeDecision(weight.node.op_type, kept, reason)
    spec = QuantizationSpec({}, (), decisions, (), _provenance(options, bits, sparse))
    start = Quantized(_written(perform(model, spec), arrays, palettes), spec, Calibration({}, "none", 0, ""))
    return start if dataset is None else _with_data(model, start, arrays, palettes, options, dataset)


def _with_data(
    model: ir.Model,
    start: Quantized,
    arrays: dict[str, Array],
    palettes: dict[str, Palette],
    options: QuantizeOptions,
    data: Dataset,
) -> Quantized:
    """``start`` with errors made up for by second order, or as it was where that does not help on samples held out."""
    from compiler.quantization.schemes.compensated import compensate

    if data.count < max(FEWEST, HELD_OUT_EVERY * data.batch):
        return start
    held = np.arange(data.count) % HELD_OUT_EVERY == 0
    better = compensate(model, arrays, palettes, options, part(data, ~held))
    if not better:
        return start
    made = _written(perform(model, start.spec), {**arrays, **better}, palettes)
    before, after = (noise(model, one, part(data, held)) for one in (start.model, made))
    if after >= before:
        return start
    gain = 10 * np.log10(before / max(after, 1e-300))
    note = f"{len(better)} weights compressed by second order: {gain:.1f} dB less noise on held-out samples"
    spec = replace(start.spec, notes=(note,))
    return Quantized(_written(perform(model, spec), {**arrays, **better}, palettes), spec, start.calibration)


def _palette(weight: LargeWeight, options: QuantizeOptions, bits: int | None, sparse: bool) -> Palette | str:
    """The palette to use, or why there is none: as many tables as asked where the channels divide into them, else one.

    A channel of few weights (depthwise convolutions) has nothing to average its errors over: it loses none, and gets BITS_OF_FEW.
    """
    size = weight.array.size
    channels = weight.array.shape[weight.axis] if weight.axis is not None else 1
    few = size // channels < FEWEST_PER_CHANNEL
    if bits is None:
        return f"{size // channels} weights per channel are too few to lose any" if few else Palette(None, sparse=True)
    bits, sparse = (max(bits, BITS_OF_FEW), False) if few else (bits, sparse)
    entries = 1 << bits
    if entries * TABLE_SHARE > size:
        return f"{size} weights are too few for a table of {entries}"
    groups = _groups(weight, options.compression.palette_group)
    if groups * entries * TABLE_SHARE > size:
        groups = 1
    return Palette(bits, weight.axis if groups > 1 else None, groups, sparse, options.compression.int8_table)


def _groups(weight: LargeWeight, wanted: int | None) -> int:
    """Into how many groups the channels go: equal ones, whose size is nearest to ``wanted``."""
    if wanted is None or weight.axis is None:
        return 1
    channels = int(weight.array.shape[weight.axis])
    fitting = [d for d in range(1, channels + 1) if channels % d == 0]
    return channels // min(fitting, key=lambda d: abs(math.log(d / wanted)))


def _values(array: Array, palette: Palette, options: QuantizeOptions) -> Array:
    if palette.sparse:
        array = sparsified(array, options.compression.sparsity)
    return array if palette.bits is None else palettized(array, palette)


def _describe(before: Array, after: Array, palette: Palette) -> str:
    noise = float(((after.astype(np.float64) - before) ** 2).sum())
    power = float((before.astype(np.float64) ** 2).sum())
    parts = [f"{float((after == 0).mean()):.0%} zeros"] if palette.sparse else []
    if palette.bits is not None:
        parts.append(f"{palette.groups} table(s) of {1 << palette.bits}")
    return f"{', '.join(parts)}: {10 * np.log10(max(power, 1e-30) / max(noise, 1e-30)):.1f} dB"


def _provenance(options: QuantizeOptions, bits: int | None, sparse: bool) -> dict[str, Any]:
    compression = options.compression
    return {
        "palette_bits": bits,
        "palette_group": compression.palette_group,
        "int8_table": compression.int8_table,
        "sparsity": compression.sparsity if sparse else None,
    }


def _written(model: ir.Model, arrays: dict[str, Array], palettes: dict[str, Palette]) -> ir.Model:
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    write_palettes(model, palettes)
    return model


def sparse_int8(model: ir.Model, dataset: Dataset | None, options: QuantizeOptions) -> Quantized:
    """As int8-weights, after the smallest weights became zero; what is zero in int8 is left out of a Core ML file."""
    thinned = _compressed(model, dataset, options, bits=None, sparse=True)
    made = int8_weights(thinned.model, dataset, options)
    write_palettes(made.model, {name: Palette(None, sparse=True) for name in _codes(made.model)})
    provenance = {**made.spec.provenance, "sparsity": options.compression.sparsity}
    spec = replace(made.spec, notes=thinned.spec.notes, provenance=provenance)
    return replace(made, spec=spec)


def _codes(model: ir.Model) -> list[str]:
    """Names of the initializers that hold integer weights."""
    values = (node.inputs[0] for node in model.graph if node.op_type == "DequantizeLinear")
    return [value_name(v) for v in values if v is not None and v.const_value is not None]


palettized1 = partial(_compressed, bits=1, sparse=False)
palettized2 = partial(_compressed, bits=2, sparse=False)
palettized3 = partial(_compressed, bits=3, sparse=False)
palettized4 = partial(_compressed, bits=4, sparse=False)
palettized6 = partial(_compressed, bits=6, sparse=False)
palettized8 = partial(_compressed, bits=8, sparse=False)
sparse = partial(_compressed, bits=None, sparse=True)
sparse_palettized4 = partial(_compressed, bits=4, sparse=True)
sparse_palettized6 = partial(_compressed, bits=6, sparse=True)
sparse_palettized8 = partial(_compressed, bits=8, sparse=True)
