"""What pruning decides, as values: options, instructions and the plan. A plan can be printed, stored and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from compiler.errors import DataError, Refusal

SCHEMA = "edgewright.prune-plan/1"


class Measure(StrEnum):
    """What ``share`` is a share of."""

    CHANNELS = "channels"
    MACS = "macs"


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """How much to remove, and where not to.

    Args:
        share: part to remove, 0 < share < 1; of the removable channels, or of the whole model's multiply-accumulates.
        measure: which of the two.
        granularity: what stays of a group is a multiple of this, as vector units want it; smaller groups stay whole.
        keep: shell patterns of node names whose output channels all stay.
        largest_cut: no group loses more than this part of its channels.
        saliency: name in SALIENCIES.
    """

    share: float = 0.3
    measure: Measure = Measure.CHANNELS
    granularity: int = 8
    keep: tuple[str, ...] = ()
    largest_cut: float = 0.75
    saliency: str = "surgeon"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise DataError(
                f"The share to prune is {self.share}.", remedy="Give a share between 0 and 1, both excluded."
            )
        if self.granularity < 1:
            raise DataError(f"The granularity is {self.granularity}.", remedy="Give a granularity of 1 or more.")
        if not 0 < self.largest_cut < 1:
            raise DataError(
                f"The largest cut per group is {self.largest_cut}.",
                remedy="Give a part between 0 and 1, both excluded.",
            )


class Role(StrEnum):
    """What an initializer's axis means to the channels that leave."""

    PRODUCES = "produces"  # output channels of a weighted node
    CONSUMES = "consumes"  # input channels of a weighted node: repaired afterwards
    CARRIES = "carries"  # depthwise weights, normalisation, slopes, constants: one entry per channel


@dataclass(frozen=True, slots=True)
class Cut:
    """Remove the positions ``remove`` of ``axis`` from an initializer that ``node`` reads; ``size`` is the axis before."""

    initializer: str
    axis: int
    size: int
    remove: tuple[int, ...]
    role: Role
    node: str


@dataclass(frozen=True, slots=True)
class SetGroups:
    """Set the ``group`` attribute of a depthwise convolution."""

    node: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class SetDimension:
    """Set entry ``index`` of the constant target shape of a Reshape."""

    node: str
    index: int
    before: int
    after: int


Instruction = Cut | SetGroups | SetDimension


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that live and die together, position by position.

    ``name`` is the first producer; ``removed`` are positions in that producer's output; ``cost`` is the saliency's
    estimate of what the removal costs, as a part of the consumers' output energy.
    """

    name: str
    channels: int
    removed: tuple[int, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters (elements of float initializers) and multiply-accumulates of one inference."""

    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """Everything that ``perform`` will do, and what it cannot touch and why."""

    groups: tuple[Group, ...]
    instructions: tuple[Instruction, ...]
    refusals: tuple[Refusal, ...]
    before: Size
    after: Size
    notes: tuple[str, ...] = ()

    @property
    def removed(self) -> int:
        return sum(len(group.removed) for group in self.groups)

    @property
    def channels(self) -> int:
        """Removable channels before."""
        return sum(group.channels for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        document = asdict(self)
        for entry, instruction in zip(document["instructions"], self.instructions, strict=True):
            entry["kind"] = type(instruction).__name__
        return {"schema": SCHEMA, **document}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> PrunePlan:
        """Read ``to_dict``'s result back, also after a trip through JSON. Raises DataError."""
        if document.get("schema") != SCHEMA:
            raise DataError(
                f"The plan has schema {document.get('schema')!r}, expected {SCHEMA!r}.", remedy="Make the plan again."
            )
        try:
            return cls(
                groups=tuple(Group(**_tuples(group)) for group in document["groups"]),
                instructions=tuple(_instruction(entry) for entry in document["instructions"]),
                refusals=tuple(Refusal(**refusal) for refusal in document["refusals"]),
                before=Size(**document["before"]),
                after=Size(**document["after"]),
                notes=tuple(document["notes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The plan is damaged: {error!r}.", remedy="Make the plan again.") from error

    def __str__(self) -> str:
        lines = [
            f"remove {self.removed} of {self.channels} removable channels: parameters {self.before.parameters:,} ->"
            f" {self.after.parameters:,}, MACs {self.before.macs:,} -> {self.after.macs:,}"
        ]
        for group in self.groups:
            kept = group.channels - len(group.removed)
            lines.append(
                f"  {group.name}: {group.channels} -> {kept} channels, cost {group.cost:.2e},"
                f" read by {', '.join(group.consumers) or 'no weights'}"
            )
        lines += [f"  kept whole: {refusal}" for refusal in self.refusals]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _instruction(entry: Mapping[str, Any]) -> Instruction:
    fields = _tuples(entry)
    kind = fields.pop("kind")
    if kind == "Cut":
        return Cut(**{**fields, "role": Role(fields["role"])})
    kinds: dict[str, type[SetGroups] | type[SetDimension]] = {"SetGroups": SetGroups, "SetDimension": SetDimension}
    return kinds[kind](**fields)
