"""Write report.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path

from compiler.report.html import render
from compiler.report.schema import Report
from runtimes.artifact.files import write_atomic


def write_report(report: Report, folder: Path) -> None:
    """Both files from the same values. Raises StorageError."""
    document = report.to_json()
    write_atomic(folder / "report.json", json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
    write_atomic(folder / "report.html", render(report).encode())
