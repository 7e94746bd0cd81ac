"""The agent's version, which a release's ``min_agent`` is compared with. A test holds it equal to pyproject.toml's."""

from __future__ import annotations

from datetime import UTC, datetime

VERSION = "0.1.0"
# When this version was made. No device that runs it can live before that: clock.py.
MADE = datetime(2026, 11, 1, tzinfo=UTC)
