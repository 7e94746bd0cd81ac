"""`python -m benchmarks.coreml speed|precisions|integers|compression|converted [NAME...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.coreml import compression, converted, integers, precisions, speed

COMMANDS = {"speed": speed.main, "compression": compression.main}
LONG = {"precisions": precisions.main, "integers": integers.main, "converted": converted.main}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=(*COMMANDS, *LONG))
    parser.add_argument("names", nargs="*", help="nets or precisions; default: all, and the page is written")
    parser.add_argument(
        "--lines", type=Path, help="keep finished rows of a page in this file, and take those that are there"
    )
    parser.add_argument("--partial", action="store_true", help="write the page from the rows of --lines alone")
    arguments = parser.parse_args()
    if arguments.command in LONG:
        sys.exit(LONG[arguments.command](arguments.names, arguments.lines, arguments.partial))
    sys.exit(COMMANDS[arguments.command](arguments.names))
