"""`python -m benchmarks.architectures`: timm's edge architectures through the float pipeline to TFLite and Core ML.

Random seeded weights with random batch norms (timm's own are zero or one in places and hide mistakes). Each net goes from PyTorch
through the importer and both exporters, is executed, and is compared with PyTorch on two random images. Writes
docs/conformance/architectures.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "levit_128s": 224,
    "mobilevit_xxs": 256,
    "edgenext_xx_small": 256,
    "pvt_v2_b0": 224,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "deit_tiny_patch16_224": 224,
}
NETS = (
    *("mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv4_conv_small"),
    *("mobilenetv4_hybrid_medium", "efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_b0", "mnasnet_100"),
    *("ghostnet_100", "ghostnetv2_100", "mixnet_s", "regnetx_002", "regnety_002", "repvgg_a0", "mobileone_s0"),
    *(
        "fasternet_t0",
        "starnet_s1",
        "densenet121",
        "mobilevit_xxs",
        "mobilevitv2_050",
        "edgenext_xx_small",
        "fastvit_t8",
    ),
    *(
        "efficientformer_l1",
        "efficientformerv2_s0",
        "efficientvit_b0",
        "efficientvit_m0",
        "levit_128s",
        "convnext_atto",
    ),
    *("convnextv2_atto", "deit_tiny_patch16_224", "pvt_v2_b0", "resnet18", "resnet50", "hgnetv2_b0"),
    *(
        "selecsls42b",
        "tinynet_a",
        "lcnet_100",
        "fbnetc_100",
        "hardcorenas_a",
        "repghostnet_100",
        "inception_next_atto",
    ),
    *("poolformer_s12", "rexnet_100", "semnasnet_100", "spnasnet_100", "vit_tiny_patch16_224", "xcit_nano_12_p16_224"),
)
FORMATS = ("tflite", "coreml")


@dataclass(frozen=True)
class Row:
    """One net in one format: the largest error relative to the output's range, or why there is none."""

    error: float | None
    note: str
    seconds: float


def measure(name: str, folder: Path) -> dict[str, Row]:
    """Import ``name`` once, export and execute it in each format."""
    import torch

    from compiler.importers import import_model
    from compiler.importers.base import ImportOptions
    from runtimes.session import run_dataset
    from tests.timm_models import create

    size = SIZES.get(name, 224 if "224" in name else 128)
    net = create(name, seed=0)
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, size, size)).astype(np.float32))
    source = folder / f"{name}.pt2"
    torch.export.save(torch.export.export(net, (images[:1],)), source)
    imported = import_model(str(source), ImportOptions())
    feeds = {imported.reference.inputs[0].name: images.numpy()}
    expected = run_dataset(imported.reference, feeds)
    return {fmt: _lower(imported.model, fmt, folder / name, feeds, expected) for fmt in FORMATS}


def _lower(model: object, fmt: str, stem: Path, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Row:
    from compiler.errors import UnsupportedModel
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from compiler.verification.metrics import parity
    from profiles.schema import Precision
    from runtimes.isolation import open_isolated
    from runtimes.session import run_dataset

    exporter = EXPORTERS.get(fmt)
    start = time.perf_counter()
    try:
        made = exporter.export(model, stem.with_suffix(exporter.suffix), ExportOptions(precision=Precision.FP32))  # type: ignore[arg-type]
    except UnsupportedModel as error:
        return Row(None, "; ".join(sorted({f"{r.op_type}: {r.reason}" for r in error.refusals})), 0.0)
    seconds = time.perf_counter() - start
    with open_isolated(made.path, timeout_s=600) as session:
        outputs = run_dataset(session, feeds)
    note = next((n for n in made.notes if "transpose" in n), "")
    return Row(parity(outputs, expected).relative_error, note, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=list(NETS), help="timm names; default: all, and the table is written"
    )
    names = parser.parse_args().names
    rows: dict[str, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                rows[name] = measure(name, Path(folder))
            except Exception as error:  # a net that fails in PyTorch's export is a row like any other
                text = " ".join(str(error).split())[:120]
                rows[name] = dict.fromkeys(FORMATS, Row(None, f"{type(error).__name__}: {text}", 0.0))
            print(_line(name, rows[name]), flush=True)
    if len(names) == len(NETS):
        (ROOT / "docs" / "conformance" / "architectures.md").write_text(render(rows), "utf-8")


def _cell(row: Row) -> str:
    return f"{row.error:.1e}" if row.error is not None else row.note.replace("|", "\\|")


def _line(name: str, row: dict[str, Row]) -> str:
    tflite, coreml = row["tflite"], row["coreml"]
    layout = tflite.note if tflite.error is not None else ""
    return f"| {name} | {_cell(tflite)} | {layout} | {tflite.seconds:.1f} | {_cell(coreml)} |"


def render(rows: dict[str, dict[str, Row]]) -> str:
    """The table as Markdown."""
    good = {fmt: sum(r[fmt].error is not None and r[fmt].error <= 1e-4 for r in rows.values()) for fmt in FORMATS}  # type: ignore[operator]
    return "\n".join(
        [
            "# Architectures",
            "",
            f"Written by `python -m benchmarks.architectures`: timm {version('timm')} with seeded random weights, float32,",
            "from PyTorch's exported program: the largest difference relative to the output's range, over two random images.",
            "",
            f"Within 1e-4: TFLite {good['tflite']} of {len(rows)}, Core ML {good['coreml']} of {len(rows)}.",
            "",
            "| net | TFLite (LiteRT) | layout | written in s | Core ML (reference evaluator) |",
            "|---|---|---|---|---|",
            *[_line(name, row) for name, row in rows.items()],
            "",
        ]
    )


if __name__ == "__main__":
    main()
