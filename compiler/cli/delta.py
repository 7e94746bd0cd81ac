"""``edgewright delta``: make and apply deltas by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from compiler.cli.signing import json_option, print_json
from profiles.units import format_bytes


@click.group()
def delta() -> None:
    """Make and apply deltas between two versions of an artifact."""


@delta.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The patch to write.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def encode(old: Path, new: Path, output: Path, force: bool, as_json: bool) -> None:
    """Write the smallest patch that turns OLD into NEW."""
    from compiler.publish.delta import encode_delta

    _check_output(output, force)
    report = encode_delta(old, new, output)
    if as_json:
        print_json("edgewright.delta/1", asdict(report) | {"path": str(output)})
        return
    click.echo(
        f"{output}: {format_bytes(report.size_bytes)}, {100 * report.ratio:.1f} % of {format_bytes(report.full_bytes)}"
        f" ({report.codec}); applying takes {format_bytes(report.memory_bytes)} for its decoders"
    )


@delta.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("patch", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--max-bytes", type=click.IntRange(0), default=4 << 30, show_default=True, help="Refuse a larger result.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def apply(old: Path, patch: Path, output: Path, max_bytes: int, force: bool, as_json: bool) -> None:
    """Turn OLD into the new version with PATCH."""
    from runtimes.artifact.delta import apply_delta

    _check_output(output, force)
    digest = apply_delta(old, patch, output, max_result_bytes=max_bytes)
    if as_json:
        print_json("edgewright.delta-applied/1", {"path": str(output), "sha256": digest})
    else:
        click.echo(f"{output}: SHA-256 {digest}")


def _check_output(output: Path, force: bool) -> None:
    from compiler.errors import OutputExists

    if output.exists() and not force:
        raise OutputExists(f"{output} exists.", remedy="Choose another name, or pass --force.")
