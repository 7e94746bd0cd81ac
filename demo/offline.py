"""Run by the demo inside a network namespace of its own: the agent answers the held-out set with no network at all."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
from pathlib import Path

import numpy as np

from demo.device import agent, answer_all

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def loopback_up() -> None:
    """A new namespace's loopback is down; bring it up without iproute2. Source: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | IFF_UP))


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def main(config: str, port: str, data: str, log: str, isolated: str) -> None:
    if isolated == "yes":
        loopback_up()
    held_out = np.load(data)
    with agent(Path(config), Path(log)):
        right, rate = answer_all(int(port), held_out["image"], held_out["labels"])
    total = len(held_out["labels"])
    print(json.dumps({"right": right, "total": total, "rate": rate, "interfaces": interfaces()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
