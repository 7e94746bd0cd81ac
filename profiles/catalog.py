"""Find and read device profiles: the ones shipped in devices/, or any TOML file by path."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from profiles.errors import ProfileError
from profiles.schema import Profile

DEVICES = Path(__file__).parent / "devices"


def profile_names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in DEVICES.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """Read the shipped profile ``name``, or the TOML file at that path if it ends in ``.toml``.

    Raises:
        ProfileError: no such profile, or the file does not follow the schema.
    """
    path = Path(name) if name.endswith(".toml") else DEVICES / f"{name}.toml"
    if not path.is_file():
        near = get_close_matches(name, profile_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"No profile is called {name!r}.{hint}",
            remedy=f"Choose one of {', '.join(profile_names())}, or pass the path of a .toml file.",
        )
    try:
        profile = Profile.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"Profile {path} is not TOML: {error}.", remedy="Correct the file's syntax.") from error
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ProfileError(
            f"Profile {path} does not follow the schema: {places}.", remedy="Correct the named fields."
        ) from error
    if profile.name != path.stem:
        raise ProfileError(
            f"Profile {path} calls itself {profile.name!r}.", remedy=f"Name it {path.stem!r}, as its file is named."
        )
    return profile
