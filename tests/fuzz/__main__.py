"""`python -m tests.fuzz --seconds 60`: fuzz every decoder for so long each; the exit code is 1 if one fails."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.fuzz.guided import fuzz
from tests.fuzz.targets import targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="per decoder")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="edgewright-fuzz-") as folder:
        for target in targets(Path(folder)):
            found = fuzz(target, asked.seconds, asked.seed)
            print(f"{target.name}: {found.runs} runs, {found.edges} edges, {len(found.corpus)} inputs kept", flush=True)
            for reason, data in found.failures:
                failed = True
                print(f"  {reason}\n  {data[:200].hex()}{'...' if len(data) > 200 else ''}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
