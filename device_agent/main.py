"""``edgewright-agent``: the command line, and a short way past it for the one process that stays.

Under systemd the agent is always started as ``run --config FILE``. click is 1.5 MiB and 20 ms that this process would carry for two
words; every other command goes through it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from profiles.errors import EdgewrightError


def main() -> NoReturn:
    arguments = sys.argv[1:]
    if len(arguments) == 3 and arguments[:2] == ["run", "--config"]:
        _run(arguments[2])
    from device_agent.cli import main as command_line

    command_line()


def _run(path: str) -> NoReturn:
    try:
        from device_agent.service import serve

        serve(Path(path))
    except EdgewrightError as error:
        print(f"error: {error.message}\n  -> {error.remedy}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    sys.exit(0)


if __name__ == "__main__":
    main()
