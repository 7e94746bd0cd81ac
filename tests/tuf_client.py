"""The agent's update client behind the command line that the TUF project's conformance suite drives.

    tuf_client.py --metadata-dir D init ROOT
    tuf_client.py --metadata-url U --metadata-dir D refresh
    tuf_client.py --metadata-url U --metadata-dir D --target-name N ... --target-base-url B --target-dir T download

Exit code 0 if everything was trusted and done, 1 if not. D holds the trusted metadata under unversioned names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from device_agent.config import UpdateConfig
from device_agent.source import HttpSource
from device_agent.trust import Trust, provision
from profiles.errors import EdgewrightError
from runtimes.artifact.files import write_atomic

PROVISIONED = ".provisioned"  # below D: the root that this client was given, beside what it came to trust


class SplitSource:
    """Metadata and targets from two addresses, under the paths that the agent's sources have."""

    def __init__(self, metadata_url: str, target_url: str | None) -> None:
        limits = UpdateConfig()
        self._sources = {"metadata": HttpSource(metadata_url, limits), "targets": HttpSource(target_url or "", limits)}

    def read(self, path: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
        kind, _, rest = path.partition("/")
        return self._sources[kind].read(rest, offset)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(prog="tuf_client")
    parser.add_argument("--metadata-url")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except EdgewrightError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    folder: Path = options.metadata_dir
    if options.command == "init":
        root = options.root.read_bytes()
        provision(folder / PROVISIONED, root)
        write_atomic(folder / "root.json", root)
        return
    source = SplitSource(options.metadata_url, options.target_base_url)
    trust = Trust(folder / PROVISIONED, source, kept=folder)
    trust.refresh()
    if options.command == "download":
        for name in options.target_name:
            if trust.download(name, options.target_dir) is None:
                raise EdgewrightError(f"No trusted role lists {name}.", remedy="Publish it.")


if __name__ == "__main__":
    sys.exit(main())
