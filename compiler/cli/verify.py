"""`edgewright verify`: execute a finished build once more, on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--unit",
    "units",
    multiple=True,
    type=click.Choice(UNITS),
    help="Core ML compute unit on macOS; repeatable; default: every one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verifications as one JSON document.")
@click.pass_context
def verify(ctx: click.Context, folder: Path, units: tuple[str, ...], as_json: bool) -> None:
    """Execute the artifacts of a build (FOLDER: what `build -o` wrote) on this machine's runtimes, and update its report.

    On macOS this runs the system's Core ML and turns *reference-verified* into *device-verified* where every compute unit agrees.
    Exit code 0 when everything agrees with the source, 1 when something does not (the manifest draft is then set aside).
    """
    from compiler.verification.again import verify_again

    report, ok = verify_again(folder, units)
    rows = [(a, one) for a in report.artifacts for one in a.verifications]
    if as_json:
        from compiler.report.schema import plain

        document = {"schema": "edgewright.verify/1", "ok": ok, "verifications": plain([one for _, one in rows])}
        click.echo(json.dumps(document, indent=1))
    else:
        for artifact, one in rows:
            place = f"{one.runtime} {one.unit}" if one.unit else one.runtime
            verdict = "ok" if one.ok else "FAILED"
            click.echo(f"{artifact.path:32} {place:28} {one.evidence or '-':20} {verdict:7} {one.reason}")
    ctx.exit(0 if ok else 1)
