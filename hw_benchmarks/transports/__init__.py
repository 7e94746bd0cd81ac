"""TRANSPORTS: how a measurement reaches its target. A target is ``local``, ``ssh://user@host[:port]`` or ``adb:SERIAL``."""

from __future__ import annotations

from hw_benchmarks.transports.base import Transport
from profiles.registry import Registry

TRANSPORTS: Registry[type[Transport]] = Registry(
    "transport", how_to_add="Add a module in hw_benchmarks/transports/ and one line in its __init__.py."
)
TRANSPORTS.add_lazy("local", "hw_benchmarks.transports.local", "Local")
TRANSPORTS.add_lazy("ssh", "hw_benchmarks.transports.ssh", "Ssh")
TRANSPORTS.add_lazy("adb", "hw_benchmarks.transports.adb", "Adb")


def open_transport(target: str) -> Transport:
    """The transport for ``target``. Raises RegistryMiss for an unknown kind, TargetUnreachable for a malformed address."""
    kind, _, address = target.partition(":")
    return TRANSPORTS.get(kind)(address.removeprefix("//"))
