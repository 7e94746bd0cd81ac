"""The real agent as a process of its own, for strace to watch: `python -m tests.device_agent.crash.actor ROLE ...`."""

from __future__ import annotations

import sys
from pathlib import Path

GROUP = 3  # records that are acknowledged together


def update(config_path: str) -> None:
    """One update of all models, and the confirmation that health would give."""
    from device_agent.config import load_config
    from device_agent.store import confirm, store_for
    from device_agent.update import update_all

    config = load_config(Path(config_path))
    for result in update_all(config):
        if result.outcome == "activated":
            confirm(store_for(config.data_dir, result.model))


def spool(path: str, count: str) -> None:
    """Put records, and say on standard output which are committed: whoever read that may rely on them."""
    from device_agent.spool import Spool

    queue = Spool(Path(path), max_bytes=1 << 20)
    for number in range(int(count)):
        queue.put({"kind": "event", "number": number, "text": "x" * 100})
        if number % GROUP == GROUP - 1:
            queue.flush()
            if not queue.stats()["dropped"]:  # a full disk drops records, and says so: those are not acknowledged
                print(f"ack {number + 1}", flush=True)
    queue.close()


if __name__ == "__main__":
    {"update": update, "spool": spool}[sys.argv[1]](*sys.argv[2:])
