"""``edgewright release revoke|prune|diff|push``: what happens to releases after publication."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from compiler.cli.signing import json_option, print_json, signing, signing_options
from profiles.units import format_bytes

REPO = click.argument("repo", type=click.Path(path_type=Path))
CHANNEL = click.option("--channel", default="stable", show_default=True)
MODEL = click.option("--model", required=True)


@click.command()
@REPO
@signing_options
@CHANNEL
@MODEL
@click.option("--release", "name", required=True)
@click.option("--reason", required=True, help="Devices log it; it is signed and public.")
@json_option
def revoke(
    repo: Path, keys: Path, no_password: bool, channel: str, model: str, name: str, reason: str, as_json: bool
) -> None:
    """Withdraw a release for good: nobody takes it any more, and devices that run it return to the one before."""
    from compiler.publish.manage import revoke as perform

    with_keys = signing(keys, no_password=no_password)
    entry = perform(repo, with_keys, channel=channel, model=model, release=name, reason=reason)
    if as_json:
        document = {"channel": channel, "model": model, "release": name, "revoked": entry.rollout.revoked}
        print_json("edgewright.release-revoked/1", document)
    else:
        click.echo(f"{channel}/{model} {name} is withdrawn: {reason}")


@click.command()
@REPO
@signing_options
@click.option("--keep", type=click.IntRange(1), required=True, help="How many releases of each model stay.")
@click.option(
    "--grace-hours",
    type=click.FloatRange(0),
    default=24.0,
    show_default=True,
    help="Files younger than this stay: devices may be fetching them.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go, and stop.")
@json_option
def prune(
    repo: Path, keys: Path, no_password: bool, keep: int, grace_hours: float, dry_run: bool, as_json: bool
) -> None:
    """Forget old releases and delete the files that nothing signed speaks of any more."""
    from compiler.publish.manage import prune as perform

    with_keys = signing(keys, no_password=no_password)
    done = perform(repo, with_keys, keep=keep, grace_hours=grace_hours, dry_run=dry_run)
    if as_json:
        print_json("edgewright.release-pruned/1", asdict(done) | {"dry_run": dry_run})
        return
    for name in done.releases:
        click.echo(f"  {name}")
    verb = "would be" if dry_run else "were"
    click.echo(f"{len(done.releases)} releases and {done.files} files ({format_bytes(done.bytes)}) {verb} removed.")


@click.command()
@REPO
@click.argument("old")
@click.argument("new")
@CHANNEL
@MODEL
@json_option
def diff(repo: Path, old: str, new: str, channel: str, model: str, as_json: bool) -> None:
    """Explain what changed from the release OLD to the release NEW, and what it costs to send."""
    from compiler.publish.manage import diff as compare
    from compiler.publish.manage import told

    found = compare(repo, channel=channel, model=model, old=old, new=new)
    if as_json:
        print_json("edgewright.release-diff/1", asdict(found))
        return
    click.echo(f"{channel}/{model}: {old} -> {new}")
    for change in found.changes:
        click.echo(f"  {told(change)}")
    if not found.changes:
        click.echo("  nothing changed")
    for path, size in found.delta_bytes.items():
        click.echo(f"  {path}: {format_bytes(size)} to send as a delta")


@click.command()
@REPO
@click.argument("destination")
@click.option("--delete", is_flag=True, help="Remove there what REPO does not hold any more (after prune).")
@json_option
def push(repo: Path, destination: str, delete: bool, as_json: bool) -> None:
    """Carry REPO to DESTINATION, such that no device ever sees a half-published state.

    DESTINATION is a folder, a bucket (s3://BUCKET/PREFIX) or what rsync takes (me@host:/srv/updates).
    """
    from compiler.publish.push import push as perform

    done = perform(repo, destination, delete=delete)
    if as_json:
        print_json("edgewright.release-pushed/1", asdict(done))
        return
    sent = f"{done.files} of {done.offered} files sent" if done.files is not None else f"{done.offered} files offered"
    click.echo(f"{sent} to {destination}{f', {done.removed} removed' if done.removed else ''}.")
