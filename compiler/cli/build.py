"""`edgewright build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

FORMATS = ("onnx", "tflite", "coreml")
PRECISIONS = (
    *("fp32", "fp16", "int8", "int16x8", "int8-dynamic", "int8-weights", "int4-weights"),
    *("palettized8", "palettized6", "palettized4", "palettized3", "palettized2", "palettized1"),
    *("sparse", "sparse-int8", "sparse-palettized8", "sparse-palettized6", "sparse-palettized4"),
)


def _batch_size(ctx: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """A size of 1 or more; None for "dynamic"."""
    if value == "dynamic":
        return None
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a size of 1 or more nor 'dynamic'.", ctx, parameter)
    return int(value)


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write; appears complete or not at all.",
)
@click.option("--name", help="Name of the model; default: from SOURCE.")
@click.option("--profile", "profiles", multiple=True, help="Device profile, by name or .toml path; repeatable.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FORMATS), help="Make only this format; repeatable."
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Make only this precision; repeatable.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Typical inputs: an .npz or .csv, a folder of arrays or pictures, or module:callable. INT8 needs it.",
)
@click.option(
    "--preprocess",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML: how pictures or recordings become inputs, here and on the device (docs/data.md).",
)
@click.option("--evaluate", metavar="DATA", help="Inputs with `labels`; default: the calibration data.")
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Accuracy points that an artifact may lose; default: the profile's.",
)
@click.option("--min-sqnr", type=float, metavar="DB", help="Least signal to quantization noise of every artifact.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Least share of answers equal to the source's, e.g. 0.99.",
)
@click.option(
    "--max-saturation",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Largest share of any INT8 activation's values that its codes may cut off, e.g. 0.01.",
)
@click.option(
    "--effort",
    type=click.Choice(("normal", "high")),
    default="normal",
    show_default=True,
    help="high: climb the whole rescue ladder of INT8, not only while a gate fails.",
)
@click.option(
    "--prune",
    type=click.FloatRange(0, 0.9, max_open=True),
    metavar="SHARE",
    help="Share of channels to remove, e.g. 0.25.",
)
@click.option(
    "--observer", help="How activation ranges are found: min-max, moving-average, percentile, mse or entropy."
)
@click.option("--recipe", help="Named settings of INT8: fast, thorough, detector, transformer, or a .toml file.")
@click.option(
    "--keep-float",
    multiple=True,
    metavar="REGEX",
    help="Nodes that stay in float at INT8: a regular expression for whole names, or op:TYPE; repeatable.",
)
@click.option(
    "--int16",
    multiple=True,
    metavar="REGEX",
    help="Values (or nodes, for their outputs) held in 16 bits at INT8; as --keep-float.",
)
@click.option(
    "--quantizer",
    default="edgewright",
    show_default=True,
    help="Who calibrates: edgewright, onnxruntime or neural-compressor.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path),
    help="Text file, one class name per line, for the manifest.",
)
@click.option(
    "--metadata",
    multiple=True,
    metavar="KEY=VALUE",
    help="Written into every artifact; Xcode shows author, license, version and description; repeatable.",
)
@click.option(
    "--previous",
    metavar="RELEASE",
    help="Folder of the build before, or REPOSITORY[#CHANNEL[/RELEASE]]: INT8 keeps its numbers where they fit.",
)
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help="Share of weights that become zero at sparse precisions; default: 0.5.",
)
@click.option(
    "--palette-group",
    type=click.IntRange(1),
    metavar="CHANNELS",
    help="Output channels that share a table of palettized weights; default: 16, all where Core ML before iOS18 reads it.",
)
@click.option(
    "--palette-table",
    type=click.Choice(("float", "int8")),
    help="How tables of palettized weights are stored; default: float.",
)
@click.option(
    "--coreml",
    multiple=True,
    metavar="KEY=VALUE",
    help="Core ML: deployment_target=iOS18, compute=fp16, images=true, classifier=true, flexible.INPUT=1..8x3x224x224; "
    "repeatable (docs/coreml.md).",
)
@click.option(
    "--integer-io",
    type=click.Choice(("int8", "uint8")),
    help="TFLite at int8 or int16x8 takes and gives integers (int16 at int16x8), and nothing in it computes in float.",
)
@click.option(
    "--allow-float-islands", is_flag=True, help="With --integer-io: nodes without an integer kernel stay in float."
)
@click.option(
    "--io-layout",
    type=click.Choice(("source", "nhwc")),
    default="source",
    show_default=True,
    help="nhwc: images go in and come out with channels last. Data is given in the source's layout.",
)
@click.option(
    "--batch",
    default="1",
    show_default=True,
    metavar="N|dynamic",
    callback=_batch_size,
    help="Batch size of the artifacts; dynamic: ONNX and TFLite files that take every size.",
)
@click.option("--allow-pickle", is_flag=True, help="Load sources that can run code while loading.")
@click.option("--force", is_flag=True, help="Replace an output folder that is not empty.")
@click.option(
    "--cache",
    "cache_dir",
    type=click.Path(path_type=Path),
    help="Stage cache; default: $EDGEWRIGHT_CACHE or ~/.cache/edgewright.",
)
@click.option("--no-cache", is_flag=True, help="Run every stage anew.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show which artifacts would be made and every decision of INT8, and stop.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON document.")
@click.pass_context
def build(
    ctx: click.Context,
    /,
    labels_file: Path | None,
    cache_dir: Path | None,
    no_cache: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn SOURCE into verified artifacts.

    SOURCE: model.onnx, model.pt2, model.pt, module:factory, file.py:factory, model.tflite, model.keras or a SavedModel folder.
    Exit code 0 when every gate agrees, 1 when one does not (the artifacts then lie in OUTPUT/rejected).
    """
    from compiler.cache import default_cache_dir
    from compiler.cli.terminal import TerminalProgress
    from compiler.io_layout import Layout
    from compiler.request import BuildRequest
    from profiles.schema import Format, IntegerIO, Precision

    integer_io, batch = options.pop("integer_io"), options.pop("batch")
    request = BuildRequest(
        source=options.pop("source"),
        formats=tuple(Format(f) for f in options.pop("formats")),
        precisions=tuple(Precision(p) for p in options.pop("precisions")),
        labels=_read_labels(labels_file),
        integer_io=IntegerIO(integer_io) if integer_io else None,
        io_layout=Layout.NHWC if options.pop("io_layout") == "nhwc" else None,
        float_islands=options.pop("allow_float_islands"),
        cache_dir=None if no_cache else cache_dir or default_cache_dir(),
        batch=batch or 1,
        dynamic_batch=batch is None,
        **options,
    )
    if dry_run:
        from compiler.dry_run import dry_run as plan_only

        with TerminalProgress() as progress:
            _show_plan(*plan_only(request, progress), as_json)
        return
    from compiler.pipeline import build as run_build
    from compiler.report.text import summary

    with TerminalProgress() as progress:
        report = run_build(request, progress)
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else summary(report, request.output))
    ctx.exit(0 if report.ok else 1)


def _read_labels(path: Path | None) -> tuple[str, ...] | None:
    from compiler.errors import DataError

    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The labels {path} cannot be read: {error}.", remedy="Give a text file, one name per line."
        ) from error


def _show_plan(plan: Any, spec: Any, as_json: bool) -> None:
    rows = [
        {"artifact": v.file_name(plan.model), "runtime": v.runtime, "profiles": list(v.profiles)} for v in plan.variants
    ]
    if as_json:
        quantization = json.loads(spec.to_bytes()) if spec is not None else None
        document = {"schema": "edgewright.plan/1", "model": plan.model, "artifacts": rows, "quantization": quantization}
        click.echo(json.dumps(document, indent=1))
        return
    for row in rows:
        click.echo(f"{row['artifact']:32} {row['runtime']:12} {', '.join(row['profiles'])}")
    if spec is not None:
        click.echo(str(spec))
