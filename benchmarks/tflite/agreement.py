"""`python -m benchmarks.tflite.agreement`: INT8 as TFLite against onnxruntime on the same quantized hub, layer by layer and whole;
trained nets whole.

Per layer, LiteRT gets the integers that onnxruntime had before the layer (compiler/verification/layerwise.py). Whole, both get
the same images. Also counts the transposes before and after axis orders are assigned. Writes docs/conformance/tflite_int8.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.architectures import NETS
from benchmarks.tflite import trained
from benchmarks.tflite.nets import CALIBRATED, Net, prepare
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.exporters.tflite.exporter import lower
from compiler.exporters.tflite.relayout import relayout
from compiler.exporters.tflite.writer import GraphWriter
from compiler.hub_session import open_hub
from compiler.hubfacts import output_scales
from compiler.verification.layerwise import LayerAgreement, agreement
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array, run_dataset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance" / "tflite_int8.md"
IMAGES = 4  # unseen by calibration
TEMPLATE = """# timm's nets in INT8, TFLite against onnxruntime

Written by `python -m benchmarks.tflite.agreement --write`. Seeded random weights, {calibrated} random images to calibrate with,
others to compare on; both runtimes run the same quantized hub. A *layer* is what lies between two quantizations: fed the integers
that onnxruntime had there, LiteRT's integers are compared with onnxruntime's. *Whole* is the net's output on {images} images.

Every layer within one step on at least 99 % of its elements: {layers} of {total} nets.
The whole net within one step on at least 99 % of its outputs: {whole} of {total}.

With random weights a net amplifies: one integer of 4,096 that one ADD of mobilenetv2_100 rounded the other way became 41 % of the
outputs. So the quantizer chooses scales under which sums, means, averages of four, clips, hard sigmoids and hard swishes have the
same integers in every runtime (ADR 26), and the exporter chooses kernels that round once. What is left: BATCH_MATMUL rounds twice
in fixed point, and is what attention consists of; layer normalisations, batch normalisations that no convolution takes in, and Div
compute in float between two quantizations. Where quantization has rounded a divisor to 0 (efficientvit_b0) infinity and NaN become
whatever the kernel makes of them. A net with a float output has no step to judge it by, and is not counted.

The last columns are of the float32 file: transposes, and thousands of elements that they move, with axis orders chosen operator by
operator and assigned over the whole graph.

| net | layers | worst, within one | integers equal | layers not exact | whole: equal | within one | transposes before | after |
|---|---|---|---|---|---|---|---|---|
{rows}

## Trained nets

Those of ../shared/realdata: calibrated on two thirds of the samples, compared on the rest, whole.

{trained}"""


@dataclass(frozen=True, slots=True)
class Row:
    """``layers``: per-layer shares. ``whole``: share of equal outputs, share within one step. ``before``, ``after``: transposes."""

    layers: Sequence[LayerAgreement]
    whole: tuple[float, float] | None
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def worst(self) -> float:
        return min((one.share_within_one for one in self.layers), default=1.0)

    @property
    def equal(self) -> float:
        elements = sum(one.elements for one in self.layers)
        return sum(one.share_equal * one.elements for one in self.layers) / max(elements, 1)

    @property
    def inexact(self) -> str:
        """The operators of layers that are not equal in every integer."""
        kinds = Counter("+".join(dict.fromkeys(one.op_types)) for one in self.layers if one.share_equal < 1)
        return ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(4))


def measure(net: Net) -> Row:
    model = ir.load(net.quantized)
    shape = (IMAGES, 3, net.size, net.size)
    images = {str(model.graph.inputs[0].name): np.random.default_rng(7).random(shape).astype(np.float32)}
    one = {name: array[:1] for name, array in images.items()}
    before, after = transposes(ir.load(net.hub))
    return Row(agreement(model, one, EXPORTER), _whole(model, images), before, after)


def _whole(model: ir.Model, images: dict[str, Array]) -> tuple[float, float] | None:
    with open_hub(model) as session:
        want = run_dataset(session, images)
    with tempfile.TemporaryDirectory() as folder:
        made = EXPORTER.export(model, Path(folder) / "m.tflite", ExportOptions(Precision.INT8))
        with open_session(made.path) as session:
            got = run_dataset(session, images)
    scales = output_scales(model)
    if not scales:
        return None
    steps = np.concatenate([np.abs(got[n] - want[n]).ravel() / scale for n, scale in scales.items()])
    return float((steps < 0.5).mean()), float((steps < 1.5).mean())


def transposes(model: ir.Model) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many TRANSPOSE operators, and how many elements they move: chosen operator by operator, and over the whole graph."""
    lowered = lower(model, ExportOptions(Precision.FP32))
    laid = relayout(lowered.context.writer, lowered.inputs, lowered.outputs)
    return _counted(lowered.context.writer), _counted(laid.writer)


def _counted(writer: GraphWriter) -> tuple[int, int]:
    found = [operation for operation in writer.operations if operation.code == "TRANSPOSE"]
    return len(found), sum(int(np.prod(operation.outputs[0].shape)) for operation in found)


def line(name: str, row: Row) -> str:
    whole = "float output | " if row.whole is None else f"{row.whole[0]:.3f} | {row.whole[1]:.3f}"
    moved = " | ".join(f"{count}, {elements / 1e3:.0f}k" for count, elements in (row.before, row.after))
    return f"| {name} | {len(row.layers)} | {row.worst:.5f} | {row.equal:.5f} | {row.inexact} | {whole} | {moved} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tflite.agreement", description=__doc__)
    parser.add_argument("--work", type=Path, help="keep nets here, and take those that are there")
    parser.add_argument("--lines", type=Path, help="keep finished rows in this file, and take those that are there")
    parser.add_argument("--realdata", type=Path, default=trained.REALDATA, help="folder of the trained nets")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} from all rows")
    parser.add_argument("names", nargs="*", default=list(NETS))
    options = parser.parse_args()
    lines = options.lines.read_text("utf-8").splitlines() if options.lines and options.lines.exists() else []
    done = {text.split("|")[1].strip() for text in lines}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            if name in done:
                continue
            lines.append(line(name, measure(prepare(name, options.work or Path(folder)))))
            print(lines[-1], flush=True)
            if options.lines:
                options.lines.write_text("\n".join(lines) + "\n", "utf-8")
    if options.write:
        PAGE.write_text(render(lines, trained.table(options.realdata)), "utf-8")


def render(lines: Sequence[str], trained_nets: str) -> str:
    """The page as Markdown."""
    cells = [[cell.strip() for cell in text.strip().strip("|").split("|")] for text in lines]
    layers = sum(float(row[2]) >= 0.99 for row in cells)
    whole = sum(row[6] != "" and float(row[6]) >= 0.99 for row in cells)
    return TEMPLATE.format(
        calibrated=CALIBRATED,
        images=IMAGES,
        layers=layers,
        whole=whole,
        total=len(cells),
        rows="\n".join(lines),
        trained=trained_nets,
    )


if __name__ == "__main__":
    main()
