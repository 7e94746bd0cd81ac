"""``edgewright-agent``: thin commands; each parses, calls one function, renders one result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from profiles.command import run_command
from profiles.errors import ExitCode

if TYPE_CHECKING:
    from device_agent.config import AgentConfig


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("-v", "--verbose", is_flag=True, help="Say more, and show traces.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
    kind = click.Path(path_type=Path)
    return click.option("--config", "config_path", type=kind, default=Path("agent.toml"), show_default=True)(command)


def _load(path: Path, verbose: bool) -> AgentConfig:
    from device_agent.config import load_config
    from device_agent.logs import set_up

    config = load_config(path)
    _become_owner(config.data_dir)
    set_up(config.logs, config.data_dir, verbose=verbose)
    return config


def _become_owner(folder: Path) -> None:
    """As root, go on as the user who owns the data: what root wrote there the service could not change any more."""
    if os.geteuid() != 0:
        return
    try:
        owner = folder.stat()
    except OSError:
        return  # not there yet: it becomes root's, and the service is root's as well
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _print(document: dict[str, Any], as_json: bool, line: str) -> None:
    click.echo(json.dumps(document) if as_json else line)


_ROOT = click.option(
    "--root", type=click.Path(path_type=Path), help="Trusted root.json, from a safe source; needed the first time."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run models on this device: offline, guarded, and safely updated."""


@cli.command()
@_shared
def run(config_path: Path, as_json: bool, verbose: bool) -> None:
    """Serve, update and report until stopped."""
    from device_agent.service import serve

    serve(config_path, verbose=verbose)
    if as_json:
        _print({"schema": "edgewright.agent-run/1", "stopped": True}, True, "")


@cli.command()
@_shared
def status(config_path: Path, as_json: bool, verbose: bool) -> None:
    """Show what is installed, on probation, refused, and waiting to be sent."""
    config = _load(config_path, verbose)
    from device_agent.api import describe_status

    document = describe_status(config)
    lines = [f"device {document['device_id']}"]
    for name, model in document["models"].items():
        active = model["active"]
        words = f"{active['release']} ({'confirmed' if model['confirmed'] else 'on probation'})" if active else "none"
        lines.append(f"{name}: {words}, previous {model['previous'] and model['previous']['release']}")
        lines += [f"  refused {bad['release']}: {bad['reason']}" for bad in model["bad"]]
    for name, model in ((document["health"] or {}).get("models") or {}).items():
        stand_in = model.get("answered_by", "first")
        lines += [f"{name}: {stand_in} answers in place of the first choice"] if stand_in != "first" else []
    lines += [f"{a['level']}: {a['subject']}: {a['quantity']} {a['value']:.3g}" for a in document["alerts"]]
    _print(document, as_json, "\n".join(lines))


@cli.command()
@_shared
@click.pass_context
def doctor(ctx: click.Context, config_path: Path, as_json: bool, verbose: bool) -> None:
    """Look for what is wrong on this device, and say the way out. Exit 1 if there is a problem."""
    config = _load(config_path, verbose)
    from dataclasses import asdict

    from device_agent.doctor import examine

    findings = examine(config)
    sick = any(finding.grade == "problem" for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.grade:8} {finding.what}: {finding.detail}")
        lines += [f"         -> {finding.remedy}"] if finding.remedy else []
    document = {"schema": "edgewright.agent-doctor/1", "ok": not sick, "findings": [asdict(f) for f in findings]}
    _print(document, as_json, "\n".join(lines))
    ctx.exit(int(ExitCode.GATE if sick else ExitCode.DONE))


@cli.command()
@_shared
@click.option("--model", help="Model; may be omitted if only one is configured.")
@click.option("--inputs", type=click.Path(path_type=Path), required=True, help=".npz with one array per input.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help=".npz for the outputs.")
def infer(config_path: Path, as_json: bool, verbose: bool, model: str | None, inputs: Path, output: Path) -> None:
    """Run the active release on an .npz, without the network."""
    config = _load(config_path, verbose)
    from device_agent.api import infer_file

    document = infer_file(config, model, inputs, output)
    _print(document, as_json, f"{document['model']} {document['release']}: wrote {output}")


@cli.command()
@_shared
@click.option("--model", "models", multiple=True, help="Only this model (repeatable).")
@click.option("--dry-run", is_flag=True, help="Decide and print, change nothing that inference sees.")
@click.option("--any-time", is_flag=True, help="Wait for no maintenance window.")
@click.pass_context
def update(
    ctx: click.Context,
    config_path: Path,
    as_json: bool,
    verbose: bool,
    models: tuple[str, ...],
    dry_run: bool,
    any_time: bool,
) -> None:
    """Fetch, test and activate the newest release for this device. Exit 1 if a release was rejected."""
    config = _load(config_path, verbose)
    from device_agent.api import update_and_report

    results = update_and_report(config, models=models, dry_run=dry_run, any_time=any_time)
    _results(ctx, results, as_json)


@cli.command()
@_shared
@click.option("--model", help="Model; may be omitted if only one is configured.")
@click.option("--reason", default="rolled back by hand", show_default=True)
def rollback(config_path: Path, as_json: bool, verbose: bool, model: str | None, reason: str) -> None:
    """Return to the previous release; the current one is never taken again."""
    config = _load(config_path, verbose)
    from device_agent.store import roll_back, store_for

    name = config.model(model).name
    state = roll_back(store_for(config.data_dir, name), reason)
    assert state.active is not None
    document = {"schema": "edgewright.agent-rollback/1", "model": name, "release": state.active.release}
    _print(document, as_json, f"{name} runs {state.active.release} again")


@cli.command()
@_shared
@click.argument("location", required=False)
@_ROOT
@click.pass_context
def install(
    ctx: click.Context, config_path: Path, as_json: bool, verbose: bool, location: str | None, root: Path | None
) -> None:
    """Install from LOCATION (bundle's file, folder or URL; default: the configured one). The first time with --root."""
    config = _load(config_path, verbose)
    from device_agent.api import provision_and_update

    _results(ctx, provision_and_update(config, location, root), as_json)


@cli.group()
def bundle() -> None:
    """Releases that come on a stick."""


@bundle.command("install")
@_shared
@click.argument("path", type=click.Path(path_type=Path))
@_ROOT
@click.pass_context
def bundle_install(
    ctx: click.Context, config_path: Path, as_json: bool, verbose: bool, path: Path, root: Path | None
) -> None:
    """Check and install the bundle PATH, without the network."""
    config = _load(config_path, verbose)
    from device_agent.api import provision_and_update

    _results(ctx, provision_and_update(config, str(path.resolve()), root), as_json)


@cli.command()
@_shared
@click.option("-n", "--last", type=click.IntRange(1), default=50, show_default=True, help="Lines.")
@click.option("--level", type=click.Choice(["debug", "info", "warning", "error"]), default="debug", show_default=True)
def logs(config_path: Path, as_json: bool, verbose: bool, last: int, level: str) -> None:
    """Show what the agent and its updates said last, from the file in data_dir."""
    config = _load(config_path, verbose)
    from datetime import datetime

    from device_agent.logs import read_logs

    found = read_logs(config.data_dir, last=last, level=level)
    lines = [
        f"{datetime.fromtimestamp(float(line.get('time', 0))):%Y-%m-%d %H:%M:%S} {line['level']:7} {line['message']}"
        for line in found
    ]
    _print({"schema": "edgewright.agent-logs/1", "lines": found}, as_json, "\n".join(lines))


def _results(ctx: click.Context, results: list[Any], as_json: bool) -> None:
    document = {"schema": "edgewright.agent-update/1", "results": [r.document() for r in results]}
    lines = [f"{r.model}: {r.outcome} {r.release or ''} ({r.reason})" for r in results]
    _print(document, as_json, "\n".join(lines))
    ctx.exit(int(ExitCode.GATE if any(r.outcome == "rejected" for r in results) else ExitCode.DONE))


def main() -> NoReturn:
    """Entry point of the installed script."""
    run_command(cli)


if __name__ == "__main__":
    main()
