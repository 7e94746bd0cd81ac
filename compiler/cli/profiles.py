"""`edgewright profiles`."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True)
def profiles(name: str | None, as_json: bool) -> None:
    """List the device profiles, or show the one called NAME."""
    from profiles.catalog import load_profile, profile_names

    found = [load_profile(n) for n in ([name] if name else profile_names())]
    if as_json:
        documents = [p.model_dump(mode="json") for p in found]
        click.echo(json.dumps({"schema": "edgewright.profiles/1", "profiles": documents}, indent=1))
        return
    for profile in found:
        click.echo(f"{profile.name:20} {profile.title}")
        if name:
            for target in profile.targets:
                click.echo(
                    f"  {target.format.value:8} on {target.runtime}: {', '.join(p.value for p in target.precisions)}"
                )
            limits = profile.budgets.model_dump(exclude_none=True)
            click.echo("  budgets: " + ", ".join(f"{k} {v:g}" for k, v in limits.items()))
