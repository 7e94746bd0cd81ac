"""A file system that remembers what is durable: replays a trace, and yields what a power cut may leave behind.

The model is POSIX at its least generous (ALICE, Pillai et al., OSDI 2014; what a file system may do, not what ext4 does):

- fsync or fdatasync of a file makes its own bytes and size durable, not its name.
- fsync of a folder makes the names in it durable, not the folder's own name, nor its files' bytes.
- Everything else that is pending may be lost or kept in any combination; order is kept only where one change undoes
  another on the same name. A rename is one change. A write may be torn, or leave zeros where its bytes belong.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath

from tests.device_agent.crash.trace import Call, TraceError, descriptor, located, raw_bytes, text

ROOT = 0
SECTOR = 512
Name = tuple[int, str]
Tree = dict[str, bytes | None]  # path -> bytes of a file; None for a folder; symbolic links as b"\0link:" + target
LINK = b"\0link:"


@dataclass(frozen=True, slots=True)
class Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Naming:
    """Names that change together: None takes one away."""

    names: tuple[tuple[Name, int | None], ...]

    def touches(self, folder: int) -> bool:
        return any(name[0] == folder for name, _ in self.names)


Change = Write | Resize | Naming


@dataclass
class Image:
    """Contents and names at one moment."""

    bytes_of: dict[int, bytes] = field(default_factory=dict)
    names: dict[Name, int] = field(default_factory=dict)

    def copy(self) -> Image:
        return Image(dict(self.bytes_of), dict(self.names))

    def apply(self, change: Change) -> None:
        if isinstance(change, Naming):
            for name, node in change.names:
                if node is None:
                    self.names.pop(name, None)
                else:
                    self.names[name] = node
            return
        old = self.bytes_of.get(change.node, b"")
        if isinstance(change, Resize):
            self.bytes_of[change.node] = old[: change.size].ljust(change.size, b"\0")
            return
        end = change.offset + len(change.data)
        self.bytes_of[change.node] = old[: change.offset].ljust(change.offset, b"\0") + change.data + old[end:]


class Disk:
    """Replays calls under ``root``. ``now`` is what programs see, ``durable`` what is sure, ``pending`` the difference.

    Args:
        root: the folder whose own existence is durable; what it holds already is durable too.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.durable, self.now = Image(), Image()
        self.pending: list[Change] = []
        self.folders: set[int] = {ROOT}
        self.links: set[int] = set()
        self._count = ROOT
        self._offsets: dict[tuple[int, int], int] = {}
        self._adopt(root, ROOT)

    def _adopt(self, folder: Path, node: int) -> None:
        for path in sorted(folder.iterdir()):
            made = self._new()
            for image in (self.durable, self.now):
                image.names[(node, path.name)] = made
                if path.is_file():
                    image.bytes_of[made] = path.read_bytes()
            if path.is_dir():
                self.folders.add(made)
                self._adopt(path, made)

    def _new(self) -> int:
        self._count += 1
        return self._count

    # --- names ---------------------------------------------------------------------------------------------------

    def _name(self, path: str) -> Name | None:
        """The folder's node and the last part of ``path``; None outside the root."""
        if path == self.root or not path.startswith(self.root + "/"):
            return None
        *parents, last = PurePosixPath(path[len(self.root) + 1 :]).parts
        node = ROOT
        for part in parents:
            try:
                node = self.now.names[(node, part)]
            except KeyError as error:
                raise TraceError(f"{path}: {part} was never made") from error
        return node, last

    def _node(self, path: str | None) -> int | None:
        if path is None:
            return None
        if path == self.root:
            return ROOT
        name = self._name(path)
        return None if name is None else self.now.names.get(name)

    def _do(self, change: Change) -> None:
        self.now.apply(change)
        self.pending.append(change)

    # --- calls ---------------------------------------------------------------------------------------------------

    def replay(self, call: Call) -> bool:
        """Take one call in; True if it changed this disk, so that a power cut after it is a new case."""
        handler = _HANDLERS.get(call.name)
        if handler is None:
            if any(self.root in text(argument) for argument in call.args):
                raise TraceError(f"{call.name} is not modelled: {call.args}")
            return False
        before = len(self.pending)
        synced = handler(self, call)
        return bool(synced) or len(self.pending) != before

    def _open(self, call: Call) -> None:
        flags = next((a for a in call.args if a.startswith("O_")), "O_CREAT|O_TRUNC|O_WRONLY")
        if call.path is None:
            return
        name = self._name(call.path)
        if name is None:
            return
        node = self.now.names.get(name)
        if node is None:
            if "O_CREAT" not in flags:
                raise TraceError(f"{call.path} was opened and never made")
            node = self._new()
            self.now.bytes_of[node] = self.durable.bytes_of[node] = b""
            self._do(Naming(((name, node),)))
        elif "O_TRUNC" in flags and self.now.bytes_of[node]:
            self._do(Resize(node, 0))
        self._offsets[(call.result, node)] = -1 if "O_APPEND" in flags else 0

    def _seek(self, call: Call) -> None:
        number, path = descriptor(call.args[0])
        node = self._node(path)
        if node is not None and self._offsets.get((number, node), 0) >= 0:
            self._offsets[(number, node)] = call.result

    def _write(self, call: Call) -> None:
        number, path = descriptor(call.args[0])
        node = self._node(path)
        if node is None:
            return
        data = raw_bytes(call.args[1])[: call.result]
        if call.name == "pwrite64":
            self._do(Write(node, int(call.args[3]), data))
            return
        offset = self._offsets.get((number, node), 0)
        self._do(Write(node, len(self.now.bytes_of[node]) if offset < 0 else offset, data))
        if offset >= 0:
            self._offsets[(number, node)] = offset + len(data)

    def _resize(self, call: Call) -> None:
        node = self._node(descriptor(call.args[0])[1])
        if node is not None and int(call.args[1], 0) != len(self.now.bytes_of[node]):
            self._do(Resize(node, int(call.args[1], 0)))

    def _sync(self, call: Call) -> bool:
        node = self._node(descriptor(call.args[0])[1])
        if node is None:
            return False
        kept: list[Change] = []
        for change in self.pending:
            mine = change.touches(node) if isinstance(change, Naming) else change.node == node
            if mine:
                self.durable.apply(change)
            else:
                kept.append(change)
        self.pending = kept
        return True

    def _rename(self, call: Call) -> None:
        old, new = (self._name(path) for path in _paths(call))
        if old is None and new is None:
            return
        if old is None or new is None:
            raise TraceError(f"a rename across the root: {call.args}")
        self._do(Naming(((old, None), (new, self.now.names[old]))))

    def _link(self, call: Call) -> None:
        old, new = _paths(call)
        name, node = self._name(new), self._node(old)
        if name is not None:
            if node is None:
                raise TraceError(f"a link from outside: {call.args}")
            self._do(Naming(((name, node),)))

    def _symlink(self, call: Call) -> None:
        name = self._name(located(call.args[1] if len(call.args) == 3 else None, call.args[-1]))
        if name is not None:
            node = self._new()
            # A short target lives in the inode itself: it comes and goes with the name.
            self.now.bytes_of[node] = self.durable.bytes_of[node] = LINK + raw_bytes(call.args[0])
            self.links.add(node)
            self._do(Naming(((name, node),)))

    def _unlink(self, call: Call) -> None:
        (path,) = _paths(call)
        name = self._name(path)
        if name is not None:
            self._do(Naming(((name, None),)))

    def _mkdir(self, call: Call) -> None:
        (path,) = _paths(call)
        name = self._name(path)
        if name is not None:
            node = self._new()
            self.folders.add(node)
            self._do(Naming(((name, node),)))

    # --- what may be left ----------------------------------------------------------------------------------------

    def tree(self, image: Image) -> Tree:
        """What an image shows from the root."""
        inside: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), node in image.names.items():
            inside.setdefault(folder, []).append((name, node))
        found: Tree = {}

        def walk(node: int, path: str) -> None:
            for name, child in sorted(inside.get(node, [])):
                below = f"{path}{name}"
                found[below] = None if child in self.folders else image.bytes_of.get(child, b"")
                if child in self.folders:
                    walk(child, below + "/")

        walk(ROOT, "")
        return found

    def after_crash(self, *, exhaustive: int, samples: int, pairs: bool) -> Iterator[Tree]:
        """Every legal state if at most ``exhaustive`` changes are pending, else the telling ones and random ones.

        Telling: each prefix, each change lost alone, each kept alone (``pairs``: also two), each write torn or zeroed.
        """
        for kept in self._subsets(len(self.pending), exhaustive, samples, pairs):
            image = self.durable.copy()
            for index in kept:
                image.apply(self.pending[index])
            yield self.tree(image)
        yield from self._torn()

    def _subsets(self, count: int, exhaustive: int, samples: int, pairs: bool) -> Iterator[Sequence[int]]:
        everything = range(count)
        if count <= exhaustive:
            for size in range(count + 1):
                yield from combinations(everything, size)
            return
        yield from (range(n) for n in range(count + 1))
        for size in (1, 2) if pairs else (1,):
            for few in combinations(everything, size):
                yield few
                yield [i for i in everything if i not in few]
        chance = random.Random(count)
        for _ in range(samples):
            yield [i for i in everything if chance.random() < 0.5]

    def _torn(self) -> Iterator[Tree]:
        for index, change in enumerate(self.pending):
            if not isinstance(change, Write):
                continue
            half = len(change.data) // 2 // SECTOR * SECTOR or len(change.data) // 2
            for data in (
                change.data[:half],
                bytes(len(change.data)),
                change.data[:half].ljust(len(change.data), b"\0"),
            ):
                image = self.durable.copy()
                for i, other in enumerate(self.pending):
                    image.apply(Write(change.node, change.offset, data) if i == index else other)
                yield self.tree(image)


def _paths(call: Call) -> list[str]:
    """The absolute paths that a call names, in order."""
    arguments, found, folder = list(call.args), [], None
    for argument in arguments:
        if argument.startswith('"'):
            found.append(located(folder, argument))
            folder = None
        else:
            folder = argument
    return found


_HANDLERS = {
    **dict.fromkeys(("open", "openat", "creat"), Disk._open),
    "lseek": Disk._seek,
    **dict.fromkeys(("write", "pwrite64"), Disk._write),
    "ftruncate": Disk._resize,
    **dict.fromkeys(("fsync", "fdatasync"), Disk._sync),
    **dict.fromkeys(("rename", "renameat", "renameat2"), Disk._rename),
    **dict.fromkeys(("link", "linkat"), Disk._link),
    **dict.fromkeys(("symlink", "symlinkat"), Disk._symlink),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), Disk._unlink),
    **dict.fromkeys(("mkdir", "mkdirat"), Disk._mkdir),
}


def digest(tree: Tree) -> str:
    """Two trees with one digest are one state. SQLite's shared memory index is not part of a state: it is rebuilt."""
    sha = hashlib.sha256()
    for path, data in tree.items():
        body = b"" if data is None else hashlib.sha256(data).digest()
        sha.update(f"{path}\0{data is None}\0".encode() + body)
    return sha.hexdigest()


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a state real."""
    folder.mkdir(parents=True)
    for path, data in tree.items():
        target = folder / path
        if data is None:
            target.mkdir()
        elif data.startswith(LINK):
            target.symlink_to(data[len(LINK) :].decode())
        else:
            target.write_bytes(data)


def read_tree(folder: Path) -> Tree:
    """A real folder in the same form."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = LINK + str(path.readlink()).encode()
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found
