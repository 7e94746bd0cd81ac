"""Typed documents for the board: what pydantic does for manifests and settings, at a tenth of its memory and start-up time.

    class Window(Schema, extra="forbid"):
        hours: int = Field(default=1, ge=1, le=24, description="...")

Names and behaviour are those of the part of pydantic that we use, in its strict mode: a value of another type is refused, never
converted, except that a whole number is taken for a float, a list for a tuple and text for a path (docs/adr/0022).
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    Self,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

Check = Callable[[Any], Any]  # takes a value as read, returns it as kept; raises Wrong
_REQUIRED: Any = object()


class Reason(NamedTuple):
    """Where in a document, from the outside in, and what is wrong there."""

    where: tuple[str | int, ...]
    what: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.where)) or 'it'}: {self.what}"


class Wrong(ValueError):
    """A document does not follow its schema; ``reasons`` lists every place."""

    def __init__(self, *reasons: Reason) -> None:
        super().__init__("; ".join(map(str, reasons[:5])))
        self.reasons = reasons

    def inside(self, step: str | int) -> list[Reason]:
        return [Reason((step, *reason.where), reason.what) for reason in self.reasons]


def _wrong(what: str) -> NoReturn:
    raise Wrong(Reason((), what))


class FieldInfo(NamedTuple):
    """What ``Field`` says of one key. ``check`` sees a value of the right type and raises ValueError if it is no good."""

    default: Any = _REQUIRED
    default_factory: Callable[[], Any] | None = None
    alias: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    check: Callable[[Any], object] | None = None
    description: str = ""

    @property
    def is_required(self) -> bool:
        return self.default is _REQUIRED and self.default_factory is None

    def get_default(self) -> Any:
        return self.default_factory() if self.default_factory is not None else self.default


def Field(**said: Any) -> Any:
    """Default, bounds and meaning of a key; also inside ``Annotated`` (see ``FieldInfo`` for the names)."""
    return FieldInfo(**said)


class _Key(NamedTuple):
    name: str  # the attribute
    key: str  # in documents
    info: FieldInfo
    check: Check
    annotation: Any


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Schema:
    """A frozen document. ``extra``: "allow" keeps unknown keys, "forbid" refuses them.

    A subclass may define ``validate_whole`` for rules over several keys: it raises ValueError.
    """

    _extra_allowed: ClassVar[bool] = True
    _keys: ClassVar[dict[str, _Key] | None] = None
    _given: frozenset[str]
    _extra: dict[str, Any]

    def __init_subclass__(cls, extra: Literal["allow", "forbid"] | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._keys = None  # not the parent's
        if extra is not None:
            cls._extra_allowed = extra == "allow"

    def __init__(self, **values: Any) -> None:
        """Raises Wrong."""
        named = {key.name: key for key in _keys(type(self)).values()}
        self._fill({named[name].key if name in named else name: value for name, value in values.items()})

    @classmethod
    def model_validate(cls, document: object) -> Self:
        """From a mapping whose keys are as in documents. Raises Wrong."""
        if isinstance(document, cls):
            return document
        if not isinstance(document, Mapping):
            _wrong(f"expected a table, found {_shown(document)}")
        made = cls.__new__(cls)
        made._fill(document)
        return made

    def _fill(self, document: Mapping[str, Any]) -> None:
        keys = _keys(type(self))
        fields, reasons = self.__dict__, []
        for key in keys.values():
            if key.key in document:
                try:
                    fields[key.name] = key.check(document[key.key])
                except Wrong as error:
                    reasons += error.inside(key.key)
            elif key.info.is_required:
                reasons.append(Reason((key.key,), "is missing"))
            else:
                fields[key.name] = key.info.get_default()
        extra = {name: value for name, value in document.items() if name not in keys}
        if not self._extra_allowed:
            reasons += [Reason((name,), f"is no known key{_nearest(name, keys)}") for name in extra]
        if reasons:
            raise Wrong(*reasons)
        fields["_extra"] = extra
        fields["_given"] = frozenset(key.name for key in keys.values() if key.key in document)
        try:
            self.validate_whole()
        except Wrong:
            raise
        except ValueError as error:
            raise Wrong(Reason((), str(error))) from error

    def validate_whole(self) -> None:
        """Rules over several keys. Raises ValueError."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A copy with other attributes, which are not checked."""
        made = type(self).__new__(type(self))
        changes, known = dict(update or {}), self.__dict__.keys() - {"_extra", "_given"}
        made.__dict__.update(self.__dict__)
        made.__dict__.update({name: value for name, value in changes.items() if name in known})
        made.__dict__["_extra"] = self._extra | {n: v for n, v in changes.items() if n not in known}
        made.__dict__["_given"] = self._given | (changes.keys() & known)
        return made

    def model_dump(self, *, mode: str = "json", by_alias: bool = False, exclude_unset: bool = False) -> dict[str, Any]:
        """As JSON-able values; unknown keys come last. ``exclude_unset``: only what was given or read."""
        shown = {
            key.key if by_alias else key.name: _plain(self.__dict__[key.name], by_alias, exclude_unset)
            for key in _keys(type(self)).values()
            if not exclude_unset or key.name in self._given
        }
        return {**shown, **_plain(self._extra, by_alias, exclude_unset)}

    @property
    def model_extra(self) -> dict[str, Any]:
        """Keys that the schema does not know, as they were read."""
        return self._extra

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(self.__dict__[n] == other.__dict__[n] for n in self.__dict__ if n != "_given")

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[key.name] for key in _keys(type(self)).values())))

    def __repr__(self) -> str:
        shown = (f"{key.name}={self.__dict__[key.name]!r}" for key in _keys(type(self)).values())
        return f"{type(self).__name__}({', '.join(shown)})"


def model_fields(schema: type[Schema]) -> dict[str, tuple[FieldInfo, Any]]:
    """Every attribute's ``FieldInfo`` and type, for documentation."""
    return {key.name: (key.info, key.annotation) for key in _keys(schema).values()}


# --- checks are made once per class, when it is first used -----------------------------------------------------------


def _keys(schema: type[Schema]) -> dict[str, _Key]:
    if schema._keys is None:
        schema._keys = {}
        for name, annotation in get_type_hints(schema, include_extras=True).items():
            if not name.startswith("_"):
                key = _key(schema, name, annotation)
                schema._keys[key.key] = key
    return schema._keys


def _key(schema: type[Schema], name: str, annotation: Any) -> _Key:
    said = getattr(schema, name, _REQUIRED)
    info = said if isinstance(said, FieldInfo) else FieldInfo(default=said)
    return _Key(name, info.alias or name, info, _bounded(_check_of(annotation), info), annotation)


def _check_of(annotation: Any) -> Check:
    """The check for a type. Raises TypeError for a type that no document of ours has."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        check = _check_of(arguments[0])
        for more in arguments[1:]:
            check = _bounded(check, more)
        return check
    if origin in (Union, UnionType):
        return _one_of([_check_of(argument) for argument in arguments])
    if origin is Literal:
        return _literal(arguments)
    if origin is tuple:
        return _sequence(arguments)
    if origin is dict:
        return _mapping(_check_of(arguments[1]))
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation.model_validate
    if annotation not in _PLAIN:
        raise TypeError(f"{annotation!r} has no check in {__name__}")
    return _PLAIN[annotation]


def _text(value: object) -> object:
    return value if isinstance(value, str) else _wrong(f"expected text, found {_shown(value)}")


def _whole(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    _wrong(f"expected a whole number, found {_shown(value)}")


def _number(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    _wrong(f"expected a number, found {_shown(value)}")


def _truth(value: object) -> object:
    return value if isinstance(value, bool) else _wrong(f"expected true or false, found {_shown(value)}")


def _nothing(value: object) -> object:
    return None if value is None else _wrong(f"expected nothing, found {_shown(value)}")


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str | Path) else _wrong(f"expected a path, found {_shown(value)}")


_PLAIN: dict[Any, Check] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _truth,
    NoneType: _nothing,
    Path: _path,
    Any: lambda value: value,
}


def _one_of(checks: list[Check]) -> Check:
    def check(value: object) -> object:
        said: list[Reason] = []
        for attempt in checks:
            try:
                return attempt(value)
            except Wrong as error:
                said = [*error.reasons] if not said or error.reasons[0].where else said
        raise Wrong(*said)

    return check


def _literal(allowed: tuple[object, ...]) -> Check:
    def check(value: object) -> object:
        if any(type(value) is type(one) and value == one for one in allowed):
            return value
        _wrong(f"expected {' or '.join(map(repr, allowed))}, found {_shown(value)}")

    return check


def _sequence(arguments: tuple[Any, ...]) -> Check:
    each = [_check_of(argument) for argument in arguments if argument is not Ellipsis]

    def check(value: object) -> object:
        if not isinstance(value, list | tuple):
            _wrong(f"expected a list, found {_shown(value)}")
        checks = each * len(value) if Ellipsis in arguments else each
        if len(checks) != len(value):
            _wrong(f"expected {len(checks)} entries, found {len(value)}")
        return tuple(_each(enumerate(value), checks))

    return check


def _mapping(inner: Check) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            _wrong(f"expected a table, found {_shown(value)}")
        return dict(zip(value, _each(value.items(), [inner] * len(value)), strict=True))

    return check


def _each(entries: Any, checks: list[Check]) -> list[Any]:
    found, reasons = [], []
    for (step, value), check in zip(entries, checks, strict=True):
        try:
            found.append(check(value))
        except Wrong as error:
            reasons += error.inside(step)
    if reasons:
        raise Wrong(*reasons)
    return found


def _bounded(check: Check, info: FieldInfo) -> Check:
    rules = _rules(info)
    if not rules and info.check is None:
        return check

    def bounded(value: object) -> object:
        found = check(value)
        if found is None:  # bounds are about a value that is there
            return None
        for holds, what in rules:
            if not holds(found):
                _wrong(f"{what}, found {_shown(found)}")
        if info.check is not None:
            _apply(info.check, found)
        return found

    return bounded


def _apply(check: Callable[[Any], object], value: object) -> None:
    try:
        check(value)
    except ValueError as error:
        raise Wrong(Reason((), str(error))) from error


def _rules(info: FieldInfo) -> list[tuple[Callable[[Any], bool], str]]:
    bounds: tuple[tuple[Any, Callable[[Any], bool], str], ...] = (
        (info.ge, lambda v: bool(v >= info.ge), "at least"),
        (info.gt, lambda v: bool(v > info.gt), "more than"),
        (info.le, lambda v: bool(v <= info.le), "at most"),
        (info.lt, lambda v: bool(v < info.lt), "less than"),
        (info.min_length, lambda v: len(v) >= (info.min_length or 0), "a length of at least"),
        (info.max_length, lambda v: len(v) <= (info.max_length or 0), "a length of at most"),
        # fullmatch: "$" alone would let a newline follow
        (info.pattern, lambda v: re.fullmatch(info.pattern or "", v) is not None, "text like"),
    )
    return [(holds, f"expected {words} {bound}") for bound, holds, words in bounds if bound is not None]


def _plain(value: Any, by_alias: bool, exclude_unset: bool) -> Any:
    if isinstance(value, Schema):
        return value.model_dump(by_alias=by_alias, exclude_unset=exclude_unset)
    if isinstance(value, tuple | list):
        return [_plain(one, by_alias, exclude_unset) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one, by_alias, exclude_unset) for key, one in value.items()}
    return str(value) if isinstance(value, Path) else value


def _shown(value: object) -> str:
    return repr(value)[:60]


def _nearest(name: str, keys: Mapping[str, _Key]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, keys, n=1)
    return f"; did you mean {near[0]}?" if near else ""
