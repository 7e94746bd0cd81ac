"""Named TOML files that follow a schema: shipped in a folder, or any file by path."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from profiles.errors import ProfileError

Model = TypeVar("Model", bound=BaseModel)


def names_in(folder: Path) -> list[str]:
    """What is shipped in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_named(name: str, folder: Path, schema: type[Model]) -> tuple[Path, Model]:
    """Read the shipped file ``name``, or the TOML file at that path if it ends in ``.toml``.

    Args:
        schema: what it has to follow; its name in lower case is what messages call it.

    Raises:
        ProfileError: there is no such file, or it does not follow the schema.
    """
    kind = schema.__name__
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = names_in(folder)
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"No {kind.lower()} is called {name!r}.{hint}",
            remedy=f"Choose one of {', '.join(known)}, or pass the path of a .toml file.",
        )
    try:
        return path, schema.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{kind} {path} is not TOML: {error}.", remedy="Correct the file's syntax.") from error
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ProfileError(
            f"{kind} {path} does not follow the schema: {places}.", remedy="Correct the named fields."
        ) from error
