"""docs/agent.md lists every configuration key with its default, as the schema has them; the systemd unit is well-formed."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import device_agent
from device_agent.config import AgentConfig
from runtimes.artifact.schema import Schema, model_fields

DOCS = Path(__file__).resolve().parents[2] / "docs" / "agent.md"


def rows() -> list[str]:
    """The table of docs/agent.md."""
    lines = [f"| {name} | {default} | {text} |" for name, default, text in _keys(AgentConfig, "")]
    return ["| key | default | meaning |", "|---|---|---|", *lines]


def _keys(schema: type[Schema], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, (info, annotation) in model_fields(schema).items():
        inner = _table(annotation)
        if inner is None:
            default = "required" if info.is_required else _shown(info.get_default())
            yield f"`{prefix}{name}`", default, info.description
        else:
            listed = "[]" if get_args(annotation) else ""
            yield from _keys(inner, f"{prefix}{name}{listed}.")


def _table(annotation: Any) -> type[Schema] | None:
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Schema)), None)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else f"`{value}`"


def test_the_page_lists_every_key_with_its_default() -> None:
    page = DOCS.read_text("utf-8").splitlines()
    missing = [row for row in rows() if row not in page]
    assert not missing, missing


def test_the_unit_runs_the_agent_hardened() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((Path(device_agent.__file__).parent / "packaging" / "edgewright-agent.service").read_text("utf-8"))
    service = dict(unit["Service"])
    assert service["Type"] == "notify" and "edgewright-agent run --config" in service["ExecStart"]
    assert int(service["WatchdogSec"]) >= 10
    for key, value in (("NoNewPrivileges", "yes"), ("ProtectSystem", "strict"), ("CapabilityBoundingSet", "")):
        assert service[key] == value
    assert {"MemoryMax", "TasksMax", "StateDirectory"} <= set(service)
