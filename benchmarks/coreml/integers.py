"""`python -m benchmarks.coreml integers [NET...]`: INT8 packages against onnxruntime on the same QDQ model, by layer and whole.

Per layer, the evaluator gets the integers that onnxruntime had there (compiler/verification/layerwise.py). Whole, both get the same
samples; and onnxruntime is held against itself the same way: its floats (the QDQ nodes one by one) and its kernels for int8
activations against its kernels for uint8 activations, which are the ones that the ONNX artifact of a build runs on.
Writes docs/conformance/coreml_int8.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coreml.cases import EVERY, REAL, case
from benchmarks.coreml.pages import Page
from runtimes.session import Array

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance" / "coreml_int8.md"
GOAL = 0.99
TEMPLATE = """# INT8 in Core ML, against onnxruntime

Written by `python -m benchmarks.coreml integers`. Real models with data of their kind, and timm's nets with seeded random weights.
A *layer* is what lies between two quantizations: fed the integers that onnxruntime had there, the reference evaluator's integers
are compared with onnxruntime's. *Whole* is the share of the net's outputs within one quantization step, on samples that
calibration did not see. *Of onnxruntime itself*: its own floats, and its kernels for int8 activations, against its kernels for
uint8 activations, on the same numbers.

Every layer within one step on at least 99 % of its elements: {layers} of {total}.
The whole net on at least 99 % of its outputs: {whole} of {stepped} ({real} of {real_total} real models); onnxruntime's floats
against its own kernels: {own} of {stepped}. Of the nets below 99 %, {beaten} are below 99 % in one of onnxruntime's own two
comparisons too.

Where layers are not equal, onnxruntime's float32 multiplier has rounded across a half, or its kernel has a table or a fixed point
of its own; a net with random weights amplifies one such integer (docs/adr/0029-exact-between-integers.md). Outputs that stay float
have no step.

| net | layers | worst, within one | integers equal | not equal | whole, within one | equal | onnxruntime's floats | int8 kernels |
|---|---|---|---|---|---|---|---|---|
{rows}
"""


def measure(name: str, folder: Path) -> str:
    """The row's cells."""
    import onnx_ir as ir

    from compiler.calibration.dataset import make_dataset
    from compiler.exporters import EXPORTERS
    from compiler.hubfacts import hub_inputs, output_scales
    from compiler.passes.serialize import from_bytes, to_bytes
    from compiler.quantization.engine import quantize
    from compiler.verification.layerwise import agreement

    one = case(name, folder)
    model: ir.Model = quantize(one.hub, make_dataset(one.calibration, hub_inputs(one.hub), where=name)).model
    first = {key: array[: _batch(model)] for key, array in one.unseen.items()}
    layers = agreement(from_bytes(to_bytes(model)), first, EXPORTERS.get("coreml"))
    elements = sum(layer.elements for layer in layers)
    equal = sum(layer.share_equal * layer.elements for layer in layers) / max(elements, 1)
    unequal = Counter("+".join(dict.fromkeys(layer.op_types)) for layer in layers if layer.share_equal < 1)
    kinds = ", ".join(f"{kind} {count}" for kind, count in unequal.most_common(4))
    worst = min((layer.share_within_one for layer in layers), default=1.0)
    whole = _whole(model, one.unseen, output_scales(model), folder)
    return f"{len(layers)} | {worst:.5f} | {equal:.7f} | {kinds} | {whole}"


def _whole(model: Any, feeds: Mapping[str, Array], scales: Mapping[str, float], folder: Path) -> str:
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from compiler.hub_session import open_hub
    from compiler.verification.metrics import StepAgreement, step_agreement
    from profiles.schema import Precision
    from runtimes.registry import open_session
    from runtimes.session import run_dataset

    if not scales:
        return "float output | | |"
    answers = {}
    for kind, suffix in (("coreml", ".mlpackage"), ("onnx", ".onnx")):
        path = folder / f"whole{suffix}"
        EXPORTERS.get(kind).export(model, path, ExportOptions(Precision.INT8))
        with open_session(path) as session:
            answers[kind] = run_dataset(session, dict(feeds))
    with open_hub(model) as session:
        answers["int8 kernels"] = run_dataset(session, dict(feeds))
    answers["floats"] = one_by_one(model, feeds)

    def against(kind: str) -> StepAgreement:
        return step_agreement((kind, answers[kind]), ("onnx", answers["onnx"]), scales)

    ours, floats, kernels = against("coreml"), against("floats"), against("int8 kernels")
    return (
        f"{ours.share_within_one:.4f} | {ours.share_equal:.4f} | "
        f"{floats.share_within_one:.4f} | {kernels.share_within_one:.4f}"
    )


def _batch(model: Any) -> int:
    shape = model.graph.inputs[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else 1


def one_by_one(model: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """onnxruntime without fusing: what the QDQ model says, in float32."""
    import onnx_ir as ir
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    count, size = len(next(iter(feeds.values()))), _batch(model)
    rows = [session.run(names, {k: a[i : i + size] for k, a in feeds.items()}) for i in range(0, count, size)]
    return {name: np.concatenate([row[k] for row in rows]) for k, name in enumerate(names)}


def main(names: Sequence[str], kept: Path | None = None, partial: bool = False) -> int:
    """Print a row per net; with all nets, write the page (see Page.fill)."""
    Page(PAGE, EVERY, measure, render).fill(names, kept, partial)
    return 0


def render(rows: Sequence[str]) -> str:
    """The page as Markdown."""
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    measured = [row for row in cells if len(row) > 8]
    stepped = [row for row in measured if row[5] != "float output"]
    good = [row for row in stepped if float(row[5]) >= GOAL]
    real = [row for row in stepped if row[0] in REAL]
    return TEMPLATE.format(
        layers=sum(float(row[2]) >= GOAL for row in measured),
        total=len(cells),
        whole=len(good),
        stepped=len(stepped),
        real=sum(row in good for row in real),
        real_total=len(real),
        own=sum(float(row[7]) >= GOAL for row in stepped),
        beaten=sum(float(row[5]) < GOAL and min(float(row[7]), float(row[8])) < GOAL for row in stepped),
        rows="\n".join(rows),
    )
