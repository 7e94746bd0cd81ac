"""Reads what strace wrote: the system calls of a program and its children that change a folder, in the order they ended."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CHANGING = [
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "fsync",
    "fdatasync",
    "sync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "truncate",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "sendfile",
]
OPENING = ["open", "openat", "creat", "lseek"]
_LINE = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+)(?:<([^>]*)>)?")
_UNFINISHED = re.compile(r"^(\d+)\s+(.*?)\s*<unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. \w+ resumed>(.*)$")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


class TraceError(Exception):
    """The trace holds what this reader does not understand; guessing would prove nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded. ``path`` is what the returned descriptor names."""

    name: str
    args: tuple[str, ...]
    result: int
    path: str | None


def missing() -> str | None:
    """Why nothing can be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian package strace)"
    probe = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"ptrace is not allowed here: {probe.stderr.strip()[-200:]}"


def record(command: Sequence[str], out: Path, *, env: dict[str, str], timeout_s: float = 120.0) -> list[Call]:
    """Run ``command`` under strace and return its calls. Raises TraceError if it fails."""
    options = ["-f", "-y", "-xx", "-s", "4000000", "--seccomp-bpf", "-e", f"trace={','.join(CHANGING + OPENING)}"]
    done = subprocess.run(
        ["strace", *options, "-o", str(out), *command], env=env, capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode != 0:
        raise TraceError(f"{' '.join(command)} left with {done.returncode}: {done.stderr[-2000:]}")
    return list(parse(out.read_text("ascii").splitlines()))


def parse(lines: Sequence[str]) -> Iterator[Call]:
    """Calls that succeeded, interleaved threads put together again."""
    begun: dict[str, str] = {}
    for raw in lines:
        line = raw
        if unfinished := _UNFINISHED.match(line):
            begun[unfinished[1]] = unfinished[2]
            continue
        if resumed := _RESUMED.match(line):
            line = f"{resumed[1]} {begun.pop(resumed[1])}{resumed[2]}"
        if found := _LINE.match(line):
            _, name, args, result, path = found.groups()
            if int(result) >= 0:
                yield Call(name, tuple(args.split(", ")), int(result), None if path is None else text(path))


def raw_bytes(argument: str) -> bytes:
    """The bytes of a quoted argument. Raises TraceError if strace cut it short."""
    if argument.endswith("..."):
        raise TraceError(f"strace cut an argument short: {argument[:80]}")
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def text(argument: str) -> str:
    """A path argument, quoted or not."""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)), argument.strip('"'))


def descriptor(argument: str) -> tuple[int, str | None]:
    """Number and path of ``3</some/path>``; path None for a deleted file, a pipe or a socket."""
    number, _, rest = argument.partition("<")
    if not rest or rest.endswith("(deleted)"):
        return int(number), None
    return int(number), text(rest.rstrip(">"))


def located(folder: str | None, path: str) -> str:
    """The absolute path of an ``...at`` call's pair, or of a lone path."""
    name = text(path)
    if name.startswith("/"):
        return os.path.normpath(name)
    if folder is None:
        raise TraceError(f"a relative path without its folder: {name}")
    return os.path.normpath(f"{text(folder.partition('<')[2].rstrip('>'))}/{name}")
