"""Find and read device profiles: the ones shipped in devices/, or any TOML file by path."""

from __future__ import annotations

from pathlib import Path

from profiles.errors import ProfileError
from profiles.schema import Profile
from profiles.tomls import load_named, names_in

DEVICES = Path(__file__).parent / "devices"


def profile_names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return names_in(DEVICES)


def load_profile(name: str) -> Profile:
    """Read the shipped profile ``name``, or the TOML file at that path if it ends in ``.toml``.

    Raises:
        ProfileError: no such profile, or the file does not follow the schema.
    """
    path, profile = load_named(name, DEVICES, Profile)
    if profile.name != path.stem:
        raise ProfileError(
            f"Profile {path} calls itself {profile.name!r}.", remedy=f"Name it {path.stem!r}, as its file is named."
        )
    return profile
