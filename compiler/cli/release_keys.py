"""``edgewright release init|rotate|sign|adopt``: repositories, and the keys that they trust."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compiler.cli.signing import days_option, json_option, print_json, signing, signing_options

if TYPE_CHECKING:
    from compiler.publish.rotate import RootSignatures

REPO = click.argument("repo", type=click.Path(path_type=Path))


@click.command()
@REPO
@signing_options
@click.option("--channel", "channels", multiple=True, default=("stable",), show_default=True, help="May be repeated.")
@click.option(
    "--root-keys", type=int, default=1, show_default=True, help="How many root keys there should be at least."
)
@click.option("--root-threshold", type=int, default=1, show_default=True, help="How many must sign a new root.")
@days_option
@json_option
def init(
    repo: Path,
    keys: Path,
    no_password: bool,
    channels: tuple[str, ...],
    root_keys: int,
    root_threshold: int,
    days: dict[str, int],
    as_json: bool,
) -> None:
    """Make an empty repository REPO; keys that the folder lacks are made."""
    from compiler.publish.release import init as make
    from compiler.publish.rotate import signatures_of

    with_keys = signing(keys, no_password=no_password, create=True, days=days)
    repository = make(repo, with_keys, channels=channels, root_keys=root_keys, root_threshold=root_threshold)
    root = repository.metadata / "1.root.json"
    signed = signatures_of(root, repository.root)
    if no_password:
        click.echo(f"The keys in {keys} are NOT encrypted: whoever reads them can sign releases.", err=True)
    if as_json:
        document = {"repository": str(repo), "root": str(root), "channels": list(channels)}
        complete = signed.have >= signed.needed
        print_json("edgewright.release-init/1", document | {"encrypted": not no_password, "complete": complete})
        return
    click.echo(f"Repository {repo} with channels {', '.join(channels)}.")
    _tell(signed)
    click.echo(f"Give devices {root}; move {keys}/root-*.pem to a safe place offline.")


def _tell(signed: RootSignatures) -> None:
    click.echo(f"{signed.path}: {signed.have} of {signed.needed} signatures.")
    if signed.have < signed.needed:
        click.echo(f"It holds when its other keys have signed too: edgewright release sign {signed.path} --keys FOLDER")


@click.command()
@REPO
@signing_options
@click.option("--role", required=True, help="root, targets, snapshot, timestamp, or a channel.")
@click.option("--lost", is_flag=True, help="Replace only keys that are not in --keys.")
@click.option("--retire", multiple=True, metavar="KEYID", help="Replace only this key; may be repeated.")
@click.option("--use", multiple=True, metavar="NAME", help="A key in --keys that comes in (see edgewright keys list).")
@click.option("--renew", is_flag=True, help="Retire no key; only a new root with a later expiry (and keys by --use).")
@click.option("--threshold", type=click.IntRange(1), default=None, help="How many root keys must sign from now on.")
@click.option(
    "--draft",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the new root there, for the holders of root keys to sign; the repository stays as it is until adopt.",
)
@days_option
@json_option
def rotate(
    repo: Path,
    keys: Path,
    no_password: bool,
    role: str,
    lost: bool,
    retire: tuple[str, ...],
    use: tuple[str, ...],
    renew: bool,
    threshold: int | None,
    draft: Path | None,
    days: dict[str, int],
    as_json: bool,
) -> None:
    """Replace the keys of a role; a new root is signed by a threshold of old root keys, which must be in --keys or sign a draft."""
    from compiler.publish.rotate import rotate as perform

    with_keys = signing(keys, no_password=no_password, days=days)
    done = perform(
        repo, with_keys, role, lost=lost, retire=retire, use=use, renew=renew, threshold=threshold, draft=draft
    )
    if as_json:
        files = {name: [str(path) for path in getattr(done, name)] for name in ("new_files", "old_files")}
        drafted = str(done.draft) if done.draft is not None else None
        print_json("edgewright.keys-rotated/1", asdict(done) | files | {"draft": drafted})
        return
    click.echo(
        f"{role}: {len(done.retired)} key(s) retired, {len(done.trusted)} trusted, root version {done.root_version}."
    )
    for path in done.new_files:
        click.echo(f"  new key: {path}")
    if done.draft is not None:
        click.echo(f"Let a threshold of root keys sign it: edgewright release sign {done.draft} --keys FOLDER")
        click.echo(f"then: edgewright release adopt {repo} {done.draft} --keys {keys}")
    for path in done.old_files:
        click.echo(f"  signs nothing any more{' after that' if done.draft else ''}, destroy it: {path}")


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@signing_options
@json_option
def sign(root: Path, keys: Path, no_password: bool, as_json: bool) -> None:
    """Add the signatures of your root keys to the file ROOT: a draft of rotate, or the 1.root.json of init."""
    from compiler.publish.rotate import sign_root

    signed = sign_root(root, signing(keys, no_password=no_password))
    if as_json:
        print_json("edgewright.root-signatures/1", asdict(signed) | {"path": str(signed.path)})
    else:
        _tell(signed)


@click.command()
@REPO
@click.argument("draft", type=click.Path(path_type=Path))
@signing_options
@json_option
def adopt(repo: Path, draft: Path, keys: Path, no_password: bool, as_json: bool) -> None:
    """Put the signed DRAFT of a new root in force; --keys holds the online keys, old and new."""
    from compiler.publish.rotate import adopt_root

    signed = adopt_root(repo, draft, signing(keys, no_password=no_password))
    if as_json:
        print_json("edgewright.root-signatures/1", asdict(signed) | {"path": str(signed.path)})
    else:
        click.echo(f"{repo} has version {signed.version} of its root.")
