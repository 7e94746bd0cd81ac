"""`python -m benchmarks.coreml precisions [NET...]`: timm's architectures in Core ML at float16 and INT8.

float16: the largest difference from PyTorch relative to the output's range, and the bound that the format gives: what independent
roundings of every result and every weight may add up to in this net on these pictures (`half_rounding`). Nodes that calibration
shows float16 to lose are float32, as in a build.

INT8: the share of the package's outputs (reference evaluator) within one step of the same QDQ model in onnxruntime: its nodes one
by one, which is what the model says, and its integer kernels, which round products and sums in their own ways.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import NETS, SIZES
from benchmarks.coreml.half_rounding import rounding_bound
from benchmarks.coreml.speed import imported_net

PAGE = Path(__file__).parent / "precisions.md"
CALIBRATION, IMAGES = 8, 4


@dataclass(frozen=True)
class Row:
    half: float
    bound: float
    kept: int
    one_by_one: float
    kernels: float


def measure(name: str, folder: Path) -> Row:
    """Both precisions of one net."""
    import torch

    from compiler.calibration.dataset import make_dataset
    from compiler.hubfacts import hub_inputs
    from compiler.passes import clean_up
    from compiler.quantization.half_ranges import mark_float32
    from runtimes.session import run_dataset
    from tests.timm_models import create

    size = SIZES.get(name, 224 if "224" in name else 128)
    imported: Any = imported_net(name, size, folder)
    hub = clean_up(imported.model)
    pictures = np.random.default_rng(0).random((CALIBRATION + IMAGES, 3, size, size)).astype(np.float32)
    key = str(hub.graph.inputs[0].name)
    data = make_dataset({key: pictures[:CALIBRATION]}, hub_inputs(hub), where=name)
    unseen = {key: pictures[CALIBRATION:]}
    marked, reasons = mark_float32(hub, data)
    half = _half(marked, folder / f"{name}-fp16.mlpackage", unseen, run_dataset(imported.reference, unseen))
    within = _int8(hub, data, folder / name, unseen)
    bound = rounding_bound(create(name), torch.from_numpy(pictures[CALIBRATION:]), of_range=True)
    return Row(half, bound, len(reasons), *within)


def _half(marked: Any, path: Path, feeds: dict[str, Any], truth: dict[str, Any]) -> float:
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from compiler.verification.metrics import parity
    from profiles.schema import Precision
    from runtimes.coreml_reference.session import open_package
    from runtimes.session import run_dataset

    EXPORTERS.get("coreml").export(marked, path, ExportOptions(Precision.FP16))
    with open_package(path) as session:
        return parity(run_dataset(session, feeds), truth).relative_error


def _int8(hub: Any, data: Any, stem: Path, feeds: dict[str, Any]) -> tuple[float, float]:
    """Shares of the package's outputs within one step of onnxruntime's: the QDQ nodes one by one, and its integer kernels."""
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from compiler.hubfacts import output_scales
    from compiler.quantization.engine import quantize
    from compiler.verification.metrics import step_agreement
    from profiles.schema import Precision
    from runtimes.registry import open_session
    from runtimes.session import run_dataset

    quantized = quantize(hub, data).model
    scales = output_scales(quantized)
    if not scales:
        return float("nan"), float("nan")
    paths = {fmt: stem.with_suffix(suffix) for fmt, suffix in (("coreml", ".mlpackage"), ("onnx", ".onnx"))}
    answers = {"node by node": _one_by_one(quantized, feeds)}
    for fmt, path in paths.items():
        EXPORTERS.get(fmt).export(quantized, path, ExportOptions(Precision.INT8))
        with open_session(path) as session:
            answers[fmt] = run_dataset(session, feeds)
    others = [(name, answers[name]) for name in ("node by node", "onnx")]
    found = [step_agreement(("coreml", answers["coreml"]), other, scales) for other in others]
    return found[0].share_within_one, found[1].share_within_one


def _one_by_one(model: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    """onnxruntime without fusing: what the QDQ model says, in float32."""
    import onnx_ir as ir
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (key, pictures), *_ = feeds.items()
    rows = [session.run(names, {key: pictures[i : i + 1]}) for i in range(len(pictures))]
    return {name: np.concatenate([row[k] for row in rows]) for k, name in enumerate(names)}


def main(names: Sequence[str]) -> int:
    """Print a line per net; with all nets, write the page."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NETS:
            try:
                lines.append(_line(name, measure(name, Path(folder))))
            except Exception as error:  # a net that fails is a line like any other
                lines.append(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:90]} | | | | |")
            print(lines[-1], flush=True)
    if not names:
        PAGE.write_text(render(lines), "utf-8")
    return 0


def _line(name: str, row: Row) -> str:
    ok = "yes" if row.half <= row.bound else "NO"
    shares = f"{row.one_by_one:.2%} | {row.kernels:.2%}"
    return f"| {name} | {row.half:.1e} | {row.bound:.1e} | {ok} | {row.kept} | {shares} |"


def render(lines: Sequence[str]) -> str:
    header = "| net | float16 error | bound | within | nodes in float32 | INT8 within one step, node by node | of the kernels |"
    return "\n".join(
        ["# Core ML precisions", "", (__doc__ or "").strip(), "", header, "|---|---|---|---|---|---|---|", *lines, ""]
    )
