"""The schema of the board's documents, held against pydantic in its strict mode: the same documents pass, with the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.artifact.schema import Field, Schema, Wrong, model_fields


class Inner(Schema, extra="forbid"):
    n: int = Field(default=1, ge=0, lt=100)


class Ours(Schema, extra="forbid"):
    name: str = Field(pattern=r"^[a-z][a-z0-9]{0,3}$")
    share: float | None = Field(default=None, gt=0, le=1)
    kind: Literal["a", "b"] = "a"
    on: bool = True
    sizes: tuple[int | None, ...] = ()
    pair: tuple[int, str] | None = None
    inner: Inner = Inner()
    table: dict[str, Inner] = Field(default_factory=dict)
    words: tuple[Annotated[str, Field(min_length=1, max_length=3)], ...] = ()


class TheirInner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    n: int = pydantic.Field(default=1, ge=0, lt=100)


class Theirs(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    name: str = pydantic.Field(pattern=r"^[a-z][a-z0-9]{0,3}$")
    share: float | None = pydantic.Field(default=None, gt=0, le=1)
    kind: Literal["a", "b"] = "a"
    on: bool = True
    # strict pydantic takes no list for a tuple from Python; from JSON, as documents come, it does
    sizes: tuple[int | None, ...] = ()
    pair: tuple[int, str] | None = None
    inner: TheirInner = TheirInner()
    table: dict[str, TheirInner] = pydantic.Field(default_factory=dict)
    words: tuple[Annotated[str, pydantic.Field(min_length=1, max_length=3)], ...] = ()


scalars = st.none() | st.booleans() | st.integers(-3, 120) | st.floats(-1, 2) | st.text("ab1\n", max_size=5)
inners = st.fixed_dictionaries({}, optional={"n": scalars, "m": scalars})
documents = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "ab1", "a\n", "1", ""]) | scalars},
    optional={
        "share": scalars,
        "kind": st.sampled_from(["a", "b", "c"]) | scalars,
        "on": scalars,
        "sizes": st.lists(scalars, max_size=3) | scalars,
        "pair": st.lists(scalars, max_size=3) | st.tuples(st.integers(0, 9), st.just("x")).map(list),
        "inner": inners | scalars,
        "table": st.dictionaries(st.sampled_from("xy"), inners, max_size=2),
        "words": st.lists(st.text("ab", max_size=4), max_size=2),
        "nome": scalars,
    },
)


@given(documents)
def test_the_same_documents_pass_with_the_same_values(document: dict[str, Any]) -> None:
    import json

    try:
        wanted = Theirs.model_validate_json(json.dumps(document)).model_dump(mode="json")
    except pydantic.ValidationError:
        wanted = None
    try:
        found = Ours.model_validate(document).model_dump()
    except Wrong:
        found = None
    assert found == wanted


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "name: is missing"),
        ({"name": "a", "nome": 1}, "nome: is no known key; did you mean name?"),
        ({"name": "a", "inner": {"n": 100}}, "inner.n: expected less than 100, found 100"),
        ({"name": "a", "table": {"x": {"n": -1}}}, "table.x.n: expected at least 0, found -1"),
        ({"name": "a", "words": ["ok", "", "long!"]}, "words.1: expected a length of at least 1"),
        ({"name": "a", "on": 1}, "on: expected true or false, found 1"),
        ({"name": "a", "share": float("nan")}, "share: expected a number, found nan"),
        ({"name": 5, "kind": "z"}, "name: expected text, found 5; kind: expected 'a' or 'b', found 'z'"),
        ([], "it: expected a table, found []"),
    ],
)
def test_a_refusal_says_where_and_why(document: object, said: str) -> None:
    with pytest.raises(Wrong) as error:
        Ours.model_validate(document)
    assert said in str(error.value)


def test_documents_are_frozen_values() -> None:
    one, two = Ours(name="a"), Ours(name="a")
    assert one == two and one != Ours(name="b") and one != "a" and "name='a'" in repr(one)
    with pytest.raises(AttributeError, match="frozen"):
        one.name = "b"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        del one.name
    assert hash(Inner(n=2)) == hash(Inner(n=2))
    changed = one.model_copy(update={"on": False})
    assert one.on and not changed.on and changed.model_dump(exclude_unset=True) == {"name": "a", "on": False}


def test_unknown_keys_are_kept_where_they_may_be() -> None:
    class Open(Schema, extra="allow"):
        where: Path = Path("x")

    made = Open.model_validate({"where": "a/b", "more": [1]})
    assert made.where == Path("a/b") and made.model_extra == {"more": [1]}
    assert made.model_copy(update={"other": 2}).model_dump() == {"where": "a/b", "more": [1], "other": 2}


def test_what_has_no_check_is_found_when_the_class_is_first_used() -> None:
    class Strange(Schema):
        when: complex = 1j

    with pytest.raises(TypeError, match="complex"):
        model_fields(Strange)
