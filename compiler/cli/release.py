"""``edgewright release``: make a signed repository, publish to it, steer rollouts, check it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compiler.cli.release_configure import configure
from compiler.cli.release_keys import adopt, init, rotate, sign
from compiler.cli.release_manage import diff, prune, push, revoke
from compiler.cli.signing import days_option, json_option, print_json, signing, signing_options
from compiler.cli.terms import given, pairs, terms_options
from profiles.errors import ExitCode
from profiles.units import format_bytes

if TYPE_CHECKING:
    from compiler.publish.release import Published
    from compiler.publish.show import ReleaseSummary
    from compiler.publish.simulate import Simulation
    from runtimes.artifact.index import Rollout

REPO = click.argument("repo", type=click.Path(path_type=Path))
WARN_DAYS = 7
F = TypeVar("F", bound=Callable[..., object])


@click.group()
def release() -> None:
    """Sign and publish releases as plain files that any web server or USB stick can serve."""


def _release_options(command: F) -> F:
    """What ``add`` and ``publish`` take."""
    for option in (
        json_option,
        click.option(
            "--deltas", type=click.IntRange(0), default=3, show_default=True, help="From how many releases before."
        ),
        click.option(
            "--shadow",
            type=click.IntRange(1),
            default=None,
            help="Devices first compare it with the release they run on so many requests, unseen by clients.",
        ),
        click.option(
            "--allow-samples",
            type=click.FloatRange(0),
            default=None,
            metavar="PER_HOUR",
            help="Raw inputs that a device may send with its telemetry; without this none ever leaves it.",
        ),
        terms_options,
        click.option(
            "--percent", type=click.FloatRange(0, 100), default=100.0, show_default=True, help="Share of devices."
        ),
        click.option("--channel", default="stable", show_default=True),
    ):
        command = option(command)
    return command


def _rollout(percent: float, shadow: int | None, terms: dict[str, Any]) -> Rollout:
    from runtimes.artifact.index import Rollout

    shadowed = {"shadow_requests": shadow} if shadow is not None else {}
    return Rollout.model_validate({"percent": percent, **terms, **shadowed})


@release.command()
@click.argument("build", type=click.Path(path_type=Path))
@REPO
@click.option("--release", "name", required=True, help="The release's name, such as 1.4.0.")
@_release_options
def add(
    build: Path,
    repo: Path,
    name: str,
    channel: str,
    percent: float,
    min_agent: str | None,
    min_runtimes: dict[str, str],
    windows: tuple[str, ...],
    shadow: int | None,
    allow_samples: float | None,
    deltas: int,
    as_json: bool,
) -> None:
    """Bring the build folder BUILD into REPO as a release, unsigned: no keys are needed, and no device sees it.

    `edgewright release publish REPO` then signs everything that was added, in one step.
    """
    from compiler.publish.staged import add as perform

    rollout = _rollout(percent, shadow, given(min_agent, min_runtimes, windows))
    result = perform(
        build, repo, channel=channel, release=name, rollout=rollout, delta_from=deltas, samples_per_hour=allow_samples
    )
    if as_json:
        print_json("edgewright.release-added/1", asdict(result))
        return
    _print_published(result)
    click.echo(f"Not signed yet: run edgewright release publish {repo} --keys FOLDER.")


@release.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="[BUILD] REPO")
@signing_options
@click.option("--release", "name", default=None, help="The release's name, such as 1.4.0; needed with BUILD.")
@_release_options
def publish(
    paths: tuple[Path, ...],
    keys: Path,
    no_password: bool,
    name: str | None,
    channel: str,
    percent: float,
    min_agent: str | None,
    min_runtimes: dict[str, str],
    windows: tuple[str, ...],
    shadow: int | None,
    allow_samples: float | None,
    deltas: int,
    as_json: bool,
) -> None:
    """Publish the build folder BUILD as a release in REPO; without BUILD, sign all that was added."""
    from compiler.publish.release import publish as perform
    from compiler.publish.staged import publish_staged

    if len(paths) > 2 or (len(paths) == 2) != (name is not None):
        raise click.UsageError("Give BUILD, REPO and --release; or REPO alone, to sign what was added.")
    with_keys = signing(keys, no_password=no_password)
    if name is None:
        results = publish_staged(paths[0], with_keys)
        if as_json:
            print_json("edgewright.published-staged/1", {"releases": [asdict(result) for result in results]})
    else:
        rollout = _rollout(percent, shadow, given(min_agent, min_runtimes, windows))
        build, repo = paths
        done = perform(
            build,
            repo,
            with_keys,
            channel=channel,
            release=name,
            rollout=rollout,
            delta_from=deltas,
            samples_per_hour=allow_samples,
        )
        results = [done]
        if as_json:
            print_json("edgewright.published/1", asdict(done))
    for result in [] if as_json else results:
        _print_published(result)
        click.echo(f"Devices accept it until {result.expires}; run refresh before that.")


def _print_published(result: Published) -> None:
    click.echo(f"{result.channel}/{result.model} {result.release} (sequence {result.sequence})")
    for file in result.files:
        click.echo(f"  {format_bytes(file.size_bytes):>10}  {file.path}")
    for delta in result.deltas:
        share = 100 * delta.size_bytes / delta.full_bytes
        click.echo(
            f"  {format_bytes(delta.size_bytes):>10}  delta from {delta.base_release}: {share:.0f} % of "
            f"{format_bytes(delta.full_bytes)} ({delta.codec})"
        )


@release.command()
@REPO
@signing_options
@click.option("--channel", default="stable", show_default=True)
@click.option("--model", required=True)
@click.option("--release", "name", required=True)
@click.option("--percent", type=click.FloatRange(0, 100), default=None, help="Share of devices, by hash.")
@click.option("--halt/--resume", default=None, help="Stop or continue handing it out.")
@terms_options
@click.option("--any-time", is_flag=True, help="Take its maintenance windows away.")
@json_option
def rollout(
    repo: Path,
    keys: Path,
    no_password: bool,
    channel: str,
    model: str,
    name: str,
    percent: float | None,
    halt: bool | None,
    min_agent: str | None,
    min_runtimes: dict[str, str],
    windows: tuple[str, ...],
    any_time: bool,
    as_json: bool,
) -> None:
    """Change which share of devices gets a release, and when, or halt it."""
    from compiler.publish.release import set_rollout

    terms = given(min_agent, min_runtimes, windows) | ({"windows": ()} if any_time else {})
    if percent is None and halt is None and not terms:
        raise click.UsageError("Give --percent, --halt, --resume, --window, --any-time, --min-agent or --min-runtime.")
    with_keys = signing(keys, no_password=no_password)
    where = {"channel": channel, "model": model, "release": name}
    now = set_rollout(repo, with_keys, **where, percent=percent, halted=halt, terms=terms)
    if as_json:
        told: dict[str, Any] = {"percent": now.percent, "halted": now.halted, "windows": list(now.windows)}
        told |= {"min_agent": now.min_agent, "min_runtimes": now.min_runtimes}
        print_json("edgewright.rollout/1", where | told)
        return
    when = f", in {'; '.join(now.windows)}" if now.windows else ""
    click.echo(f"{channel}/{model} {name}: {now.percent:g} % of devices{', halted' if now.halted else ''}{when}")


@release.command()
@REPO
@click.option("--root", type=click.Path(path_type=Path), default=None, help="Root metadata to trust (from elsewhere).")
@click.option(
    "--expires-within",
    type=click.IntRange(0),
    default=None,
    metavar="DAYS",
    help="Exit 1 if a signature ends within so many days; for monitoring.",
)
@json_option
@click.pass_context
def verify(ctx: click.Context, repo: Path, root: Path | None, expires_within: int | None, as_json: bool) -> None:
    """Check all of REPO as a device would: signatures, versions, expiry, every file."""
    from compiler.publish.client import verify as check

    result = check(repo, root=root)
    soon = result.expiring(WARN_DAYS if expires_within is None else expires_within)
    for role in soon:
        click.echo(f"{role} is signed until {result.roles[role]} only: {_way_out(role)}", err=True)
    if as_json:
        print_json("edgewright.verified/1", asdict(result) | {"expiring": list(soon)})
    else:
        click.echo(
            f"{result.targets} files, {format_bytes(result.target_bytes)}: all as signed, until {result.expires}."
        )
        for model, releases in sorted(result.releases.items()):
            click.echo(f"  {model}: {', '.join(releases)}")
    ctx.exit(int(ExitCode.GATE if soon and expires_within is not None else ExitCode.DONE))


def _way_out(role: str) -> str:
    if role == "root":
        return "run edgewright release rotate --role root --renew, with root keys"
    return f"run edgewright release refresh{'' if role in ('snapshot', 'timestamp') else ' --all'}"


@release.command()
@REPO
@json_option
def show(repo: Path, as_json: bool) -> None:
    """List releases, rollouts, artifacts and deltas."""
    from compiler.publish.show import show as summarise

    summary = summarise(repo)
    if as_json:
        print_json("edgewright.repository/1", asdict(summary))
        return
    for role, end in sorted(summary.expires.items()):
        click.echo(f"{role} signed until {end}")
    for channel, settings in summary.settings.items():
        for name, value in sorted(settings.items()):
            click.echo(f"{channel} agents: {name} = {value}")
    for item in summary.releases:
        _print_release(item)


def _print_release(item: ReleaseSummary) -> None:
    state = "halted" if item.halted else f"{item.percent:g} %"
    state = f"revoked: {item.revoked}" if item.revoked else state
    click.echo(f"{item.channel}/{item.model} {item.release} (sequence {item.sequence}, {item.created}, {state})")
    for artifact in item.artifacts:
        size = format_bytes(artifact.size_bytes)
        click.echo(f"  {size:>10}  {artifact.path} for {', '.join(artifact.profiles)}")
    for delta in item.deltas:
        click.echo(
            f"  {format_bytes(delta.size_bytes):>10}  delta {delta.base_sha256[:8]} -> {delta.result_sha256[:8]}"
        )


@release.command()
@REPO
@signing_options
@click.option("--all", "everything", is_flag=True, help="Sign targets and channels anew too.")
@days_option
@json_option
def refresh(repo: Path, keys: Path, no_password: bool, everything: bool, days: dict[str, int], as_json: bool) -> None:
    """Sign snapshot and timestamp anew, so that devices keep accepting the repository; for a cron job."""
    from compiler.publish.release import refresh as sign

    expires = sign(repo, signing(keys, no_password=no_password, days=days), everything=everything)
    end = expires.strftime("%Y-%m-%dT%H:%M:%SZ")
    if as_json:
        print_json("edgewright.refreshed/1", {"expires": end})
    else:
        click.echo(f"Devices accept {repo} until {end}.")


@release.command()
@REPO
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .zip to write.")
@click.option("--channel", default="stable", show_default=True)
@click.option("--model", required=True)
@click.option("--release", "name", help="Default: the newest that is not halted.")
@click.option("--profile", "profiles", multiple=True, help="Only artifacts for this profile; may be repeated.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def bundle(
    repo: Path,
    output: Path,
    channel: str,
    model: str,
    name: str | None,
    profiles: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Put a release and its signatures into one file, for devices without a network."""
    from compiler.publish.bundle import make_bundle

    made = make_bundle(repo, output, channel=channel, model=model, release=name, profiles=profiles, force=force)
    if as_json:
        print_json("edgewright.bundle/1", asdict(made) | {"path": str(made.path)})
        return
    click.echo(f"{made.path}: {model} {made.release}, {format_bytes(made.size_bytes)}, {', '.join(made.artifacts)}")
    click.echo(
        f"Devices with a clock accept it until {made.expires}. Install it with: edgewright-agent install {output} ..."
    )


@release.command()
@REPO
@click.option("--channel", default="stable", show_default=True)
@click.option("--model", required=True)
@click.option("--devices", default=100_000, show_default=True, type=click.IntRange(1, 10_000_000))
@click.option("--percent", type=click.FloatRange(0, 100), help="Try this share for the newest release.")
@click.option(
    "--agent",
    "agents",
    multiple=True,
    callback=pairs,
    metavar="VERSION=SHARE",
    help="How much of the fleet runs which agent, such as 0.1.0=30; may be repeated.",
)
@json_option
def simulate(
    repo: Path, channel: str, model: str, devices: int, percent: float | None, agents: dict[str, str], as_json: bool
) -> None:
    """Show what a fleet would run, each device deciding by the signed rollouts as a real one does."""
    from compiler.publish.simulate import simulate as run

    try:
        shares = {version: float(share) for version, share in agents.items()}
    except ValueError as error:
        raise click.BadParameter("A share is a number.", param_hint="--agent") from error
    found = run(repo, channel=channel, model=model, devices=devices, percent=percent, agents=shares)
    if as_json:
        counts = [{"release": release, "devices": count} for release, count in found.devices_by_release.items()]
        moves = [{"from": release, "devices": count} for release, count in found.moves.items()]
        document = asdict(found) | {"releases": counts, "moves": moves}
        del document["devices_by_release"]
        print_json("edgewright.simulation/1", document)
    else:
        _print_simulation(found)


def _print_simulation(found: Simulation) -> None:
    click.echo(f"{'would run':20} {'devices':>10}  {'share':>8}")
    for release, count in found.devices_by_release.items():
        click.echo(f"{release or 'no release':20} {count:>10,}  {100 * count / found.devices:6.2f} %")
    for reason, count in sorted(found.left_out.items()):
        click.echo(f"not {found.newest}: {count:,} devices, {reason}")
    for before, count in found.moves.items():
        click.echo(f"{before or 'no release'} -> {found.newest}: {count:,} devices")
        for one in (t for t in found.transfers if t.before == before):
            each = one.full_bytes if one.delta_bytes is None else one.delta_bytes
            kind = "as a delta" if each != one.full_bytes else "in full"
            total = format_bytes(each * count)
            click.echo(f"  {one.artifact}: {format_bytes(each)} {kind}, {total} if all of them take this one")
    if found.windows:
        click.echo(f"in the windows {'; '.join(found.windows)}")


for _command in (init, configure, revoke, prune, diff, push, rotate, sign, adopt):
    release.add_command(_command)
