"""`edgewright run`: execute an artifact or a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from runtimes.session import Array, SampleFeeds, Session

ARTIFACT_TIMEOUT_S = 600.0


@click.command()
@click.argument("artifact")
@click.option(
    "--inputs",
    required=True,
    type=click.Path(path_type=Path),
    help="The model's inputs, as `build` takes them: samples on axis 0.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help=".npz to write, named as the model's outputs.",
)
@click.option("--runtime", help="Runtime by name; default: the best available for the format.")
@click.option(
    "--intermediates",
    type=click.Path(path_type=Path),
    help="Core ML: .npz of every tensor of the first sample, in the order of the program (reference evaluator).",
)
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--allow-pickle", is_flag=True, help="Load sources that can run code while loading.")
@click.option("--json", "as_json", is_flag=True, help="Describe the outputs as JSON.")
def run(
    artifact: str,
    inputs: Path,
    output: Path,
    runtime: str | None,
    intermediates: Path | None,
    force: bool,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Execute ARTIFACT (or a source, as `build` takes it) on its runtime."""
    from compiler.calibration.data import load_dataset
    from compiler.draft import write_npz
    from compiler.errors import OutputExists
    from runtimes.session import run_dataset

    for path in (output, intermediates):
        if path is not None and path.exists() and not force:
            raise OutputExists(f"{path} exists.", remedy="Choose another file, or replace it with --force.")
    with _open(artifact, runtime, allow_pickle) as session:
        feeds = load_dataset(str(inputs), session.inputs).feeds
        outputs = run_dataset(session, feeds)
        info = session.runtime
    write_npz(output, outputs)
    if intermediates is not None:
        write_npz(intermediates, _trace(artifact, feeds))
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    if as_json:
        document = {"schema": "edgewright.run/1", "runtime": info.name, "version": info.version, "outputs": shapes}
        click.echo(json.dumps(document | {"evidence": info.evidence.value}, indent=1))
    else:
        click.echo(f"{artifact} on {info.name} {info.version} ({info.evidence.value}) -> {output}: {shapes}")


def _trace(artifact: str, feeds: SampleFeeds) -> dict[str, Array]:
    """Every tensor of the first sample, "0001/conv/name" onwards. Raises DataError for other formats than Core ML."""
    from compiler.errors import DataError
    from runtimes.coreml_reference import OPENER
    from runtimes.coreml_reference.session import open_package

    if Path(artifact).suffix not in OPENER.suffixes:
        raise DataError(
            f"{artifact} is no Core ML package: only the reference evaluator tells every tensor.",
            remedy="Leave out --intermediates, or run the .mlpackage of the same build.",
        )
    with open_package(Path(artifact)) as session:
        sizes = {spec.name: spec.shape[0] or 1 for spec in session.inputs if spec.shape}
        first = {name: array[: sizes.get(name, len(array))] for name, array in feeds.items()}
        steps = enumerate(session.trace(first), 1)
        return {f"{i:04d}/{step.op_type}/{step.name}": step.output for i, step in steps}


def _open(artifact: str, runtime: str | None, allow_pickle: bool) -> Session:
    """An artifact of unknown origin runs in a child process; a source runs through its importer's reference."""
    from runtimes.isolation import open_isolated
    from runtimes.registry import BY_SUFFIX

    path = Path(artifact)
    if path.suffix in BY_SUFFIX and ":" not in artifact:
        return open_isolated(path, runtime=runtime, timeout_s=ARTIFACT_TIMEOUT_S)
    from compiler.importers import import_model
    from compiler.importers.base import ImportOptions

    return import_model(artifact, ImportOptions(allow_pickle=allow_pickle)).reference
