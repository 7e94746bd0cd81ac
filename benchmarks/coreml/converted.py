"""`python -m benchmarks.coreml converted [NET...]`: packages made by Apple's converter in the reference evaluator, against PyTorch.

Nets go from PyTorch through torch.jit.trace and coremltools.convert, so nothing of our importer or exporter takes part: what the
evaluator computes differently from PyTorch is the evaluator's mistake (or the converter's). Errors are relative to the largest
output. float32 may differ by the order of sums; float16 is held against `rounding_bound`.
Writes docs/conformance/coreml_converted.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coreml.half_rounding import rounding_bound, steps_apart
from benchmarks.coreml.pages import Page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance" / "coreml_converted.md"
TEMPLATE = """# Packages of Apple's converter in the reference evaluator

Written by `python -m benchmarks.coreml converted`. From PyTorch through torch.jit.trace and coremltools.convert, so nothing of this
project's importer or exporter takes part, against PyTorch; timm's nets with seeded random weights. Errors are relative to the
largest output. The float16 bound is taken from roundings in PyTorch (benchmarks/coreml/half_rounding.py).

float32 within {limit:g} and float16 within its bound: {within} of {total}.

| net | float32 error | float16 error | float16 bound | within |
|---|---|---|---|---|
{rows}
"""
FLOAT32_LIMIT = 1e-4  # sums in another order; the limit of the build's own parity gate
PLAIN = ("lstm", "gru", "transformer")
TIMM = {
    **dict.fromkeys(("mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_lite0", "ghostnet_100"), 64),
    **dict.fromkeys(("mobilevit_xxs", "resnet18", "mnasnet_100", "regnetx_002", "convnext_atto"), 64),
    "deit_tiny_patch16_224": 224,
}


@dataclass(frozen=True)
class Row:
    """Largest errors relative to the largest output, and what float16 may lose."""

    single: float
    half: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.single <= FLOAT32_LIMIT and self.half <= self.bound


def net_and_shape(name: str) -> tuple[Any, tuple[int, ...]]:
    """A seeded net in eval mode and the shape of its one float32 input: recurrent ones, PyTorch's own encoder, or timm's."""
    import torch

    torch.manual_seed(0)
    if name in ("lstm", "gru"):
        return _Recurrent.of(name), (1, 9, 12)
    if name == "transformer":
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), (1, 7, 32)
    from tests.timm_models import create

    return create(name), (1, 3, TIMM[name], TIMM[name])


class _Recurrent:
    """Two bidirectional layers and a head on the last step."""

    @staticmethod
    def of(kind: str) -> Any:
        import torch

        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                make = torch.nn.LSTM if kind == "lstm" else torch.nn.GRU
                self.cells = make(12, 16, num_layers=2, bidirectional=kind == "lstm", batch_first=True)
                self.head = torch.nn.Linear(32 if kind == "lstm" else 16, 6)

            def forward(self, x: Any) -> Any:
                return self.head(self.cells(x)[0][:, -1])

        return Net().eval()


def convert(net: Any, x: Any, precision: str, path: Path) -> None:
    """``net`` through Apple's converter, input ``x`` and output ``y`` in float32. ``precision``: FLOAT32 or FLOAT16."""
    import coremltools as ct
    import torch

    with torch.no_grad(), steps_apart():
        traced = torch.jit.trace(net, x, check_trace=False)  # type: ignore[no-untyped-call]
    ct.convert(
        traced, inputs=[ct.TensorType("x", tuple(x.shape), dtype=np.float32)],
        outputs=[ct.TensorType("y", dtype=np.float32)], convert_to="mlprogram", skip_model_load=True,
        compute_precision=ct.precision[precision], minimum_deployment_target=ct.target.iOS16,
    ).save(str(path))  # fmt: skip


def measure(name: str, folder: Path) -> Row:
    """Both precisions of one net on one seeded input."""
    import torch

    from runtimes.coreml_reference.session import open_package

    net, shape = net_and_shape(name)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    with torch.no_grad():
        expected = net(x).numpy()
    errors = []
    for precision in ("FLOAT32", "FLOAT16"):
        path = folder / f"{name}-{precision}.mlpackage"
        convert(net, x, precision, path)
        with open_package(path) as session:
            found = session.run({"x": x.numpy()})["y"]
        errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
    return Row(errors[0], errors[1], rounding_bound(net, x))


def main(names: Sequence[str], kept: Path | None = None, partial: bool = False) -> int:
    """Print a row per net; with all nets, write the page (see Page.fill). 1 if a net is outside its limits."""
    rows = Page(PAGE, (*PLAIN, *TIMM), _cells, render).fill(names, kept, partial)
    return int(not all(row.endswith("| yes |") for row in rows))


def _cells(name: str, folder: Path) -> str:
    row = measure(name, folder)
    return f"{row.single:.1e} | {row.half:.1e} | {row.bound:.1e} | {'yes' if row.ok else 'NO'}"


def render(rows: Sequence[str]) -> str:
    """The page as Markdown."""
    within = sum(row.endswith("| yes |") for row in rows)
    return TEMPLATE.format(within=within, total=len(rows), limit=FLOAT32_LIMIT, rows="\n".join(rows))
