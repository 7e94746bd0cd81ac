"""How weights are compressed that are no integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PALETTE_GROUP: Final = 16  # output channels per table, the usual choice of coremltools' guide to palettization


@dataclass(frozen=True, slots=True)
class Compression:
    """Options of compiler/quantization/schemes/compressed.py.

    Args:
        sparsity: share of each weight that becomes zero; 0 keeps the zeros that it has.
        palette_group: output channels that share one table; None: one table per weight.
        int8_table: whether the entries of a table are int8 with a scale, else float.
    """

    sparsity: float = 0.5
    palette_group: int | None = None
    int8_table: bool = False
