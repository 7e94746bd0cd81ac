"""Quantization recipes: named settings, one TOML file each in recipes/, or any file by path."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiles.errors import ProfileError

RECIPES = Path(__file__).parent / "recipes"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeSettings(_Strict):
    """What a recipe sets; what is left out keeps the build's own value. Options on the command line come first.

    ``keep_float`` and ``int16`` are scopes: regular expressions over whole names, or ``op:TYPE``.
    """

    observer: str | None = None
    weights: str | None = Field(default=None, description="name in compiler.quantization.params.WEIGHT_METHODS")
    per_channel: bool | None = None
    block_size: int | None = Field(default=None, gt=1)
    effort: Literal["normal", "high"] | None = None
    keep_float: tuple[str, ...] = Field(default=(), description="nodes to leave in float")
    int16: tuple[str, ...] = Field(default=(), description="values, or nodes for their outputs, to hold in 16 bits")


class Recipe(_Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    why: str = Field(description="what speaks for these settings")
    quantization: RecipeSettings


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read the shipped recipe ``name``, or the TOML file at that path if it ends in ``.toml``.

    Raises:
        ProfileError: no such recipe, or the file does not follow the schema.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        near = get_close_matches(name, recipe_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"No recipe is called {name!r}.{hint}",
            remedy=f"Choose one of {', '.join(recipe_names())}, or pass the path of a .toml file.",
        )
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"Recipe {path} is not TOML: {error}.", remedy="Correct the file's syntax.") from error
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ProfileError(f"Recipe {path} does not follow the schema: {places}.", remedy="Correct it.") from error
