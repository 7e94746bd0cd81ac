"""Quantization recipes: named settings, one TOML file each in recipes/, or any file by path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles.tomls import load_named, names_in

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
    return names_in(RECIPES)


def load_recipe(name: str) -> Recipe:
    """Read the shipped recipe ``name``, or the TOML file at that path if it ends in ``.toml``.

    Raises:
        ProfileError: no such recipe, or the file does not follow the schema.
    """
    return load_named(name, RECIPES, Recipe)[1]
