"""How the agent is, in one document: what ``GET /health`` answers and what the health file holds."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from device_agent.engine import Engine
from device_agent.version import VERSION

FILE = "health.json"


def describe_health(engine: Engine) -> dict[str, Any]:
    """``healthy``: every model answers with its own release, by whatever means."""
    models: dict[str, Any] = {}
    for name in engine.names():
        found = engine.health(name)
        if found is None:
            models[name] = {"ready": False}
            continue
        ref, counts, age = found
        models[name] = {
            "ready": True,
            "release": ref.release,
            "answered_by": engine.stands_in(name) or "first",
            "ok": counts.ok,
            "failed": counts.failed,
            "refused": counts.refused,
            "shed": counts.shed,
            "p95_ms": round(counts.p95_ms, 3),
            "age_s": round(age, 1),
        }
    healthy = all(m["ready"] and m["answered_by"] not in ("last-good", "constant") for m in models.values())
    return {"schema": "edgewright.agent-health/1", "agent": VERSION, "healthy": healthy, "models": models}


class HealthFile:
    """``data_dir/health.json``, for monitors that read files. Written when something changed, at most every ``every_s``.

    Flash wears out by writing: a file that changes with every request would do harm.
    """

    def __init__(self, folder: Path, every_s: float = 60.0) -> None:
        self._path, self._every_s = folder / FILE, every_s
        self._next, self._known = 0.0, ""

    def write(self, engine: Engine, now: float) -> None:
        """Without fsync: it is about now, and nothing is lost with it. Failure to write is not the agent's failure."""
        document = describe_health(engine)
        key = json.dumps(
            [document["healthy"], [(m.get("release"), m.get("answered_by")) for m in document["models"].values()]]
        )
        if key == self._known and now < self._next:
            return
        self._known, self._next = key, now + self._every_s
        fresh = self._path.with_suffix(".json.new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps({**document, "time": int(time.time())}, indent=1))
            fresh.replace(self._path)


def read_health(folder: Path) -> dict[str, Any] | None:
    """What the running agent last wrote, with its age in ``time``; None where it never ran or the file is damaged."""
    try:
        document = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
