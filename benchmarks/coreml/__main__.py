"""`python -m benchmarks.coreml speed|precisions|compression|converted [NAME...]`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.coreml import compression, converted, precisions, speed

COMMANDS = {
    "speed": speed.main,
    "precisions": precisions.main,
    "compression": compression.main,
    "converted": converted.main,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("names", nargs="*", help="nets or precisions; default: all")
    arguments = parser.parse_args()
    sys.exit(COMMANDS[arguments.command](arguments.names))
