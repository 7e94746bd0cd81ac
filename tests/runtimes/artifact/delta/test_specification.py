"""docs/formats/delta.md is enough to write a reader: this one follows the page and shares no code with ours."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from compiler.publish.delta.encode import pack
from compiler.publish.delta.plan import candidate_plans
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.delta.format import Kind, Segment

WIDTHS = {2: 1, 3: 2, 4: 4, 5: 2, 6: 4}


def _inflate(codec: int, params: int, data: bytes) -> bytes:
    if codec == 0:
        return data
    if codec == 2:
        return bz2.decompress(data)
    chain = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << (params & 255)}
    chain |= {"lc": params >> 8 & 15, "lp": params >> 12 & 15, "pb": params >> 16}
    return lzma.decompress(data, lzma.FORMAT_RAW, filters=[chain])


def _order(x: int, bits: int) -> int:
    top = 1 << (bits - 1)
    if not x & top:
        return x
    return top if x == top else (1 << bits) - (x - top)


def _unorder(x: int, bits: int) -> int:
    top = 1 << (bits - 1)
    if not x & top:
        return x
    return top if x == top else ((1 << bits) - x) + top


def read_by_the_page(base: bytes, patch: bytes) -> bytes:
    magic, version, streams, base_size, base_digest, size, digest, segments, table = struct.unpack(
        "<8sHHQ32sQ32sII", patch[:100]
    )
    assert (magic, version, base_size) == (b"EWDELTA\0", 2, len(base))
    assert base_digest == hashlib.sha256(base).digest()
    position = 100 + 24 * streams
    columns = _inflate(1, 16 | 3 << 8, patch[position : position + table])
    position += table
    contents: dict[int, object] = {}
    for row in range(streams):
        name, codec, zero, params, raw, stored = struct.unpack_from("<BBHIQQ", patch, 100 + 24 * row)
        data = patch[position : position + stored]
        contents[name] = _Rans(params, data) if codec == 3 else _Bytes(_inflate(codec, params, data))
        assert zero == 0 and (codec == 3 or len(contents[name].data) == raw)  # type: ignore[attr-defined]
        position += stored
    assert position == len(patch)
    kinds = columns[:segments]
    skips = struct.unpack(f"<{segments}q", columns[segments : 9 * segments])
    sizes = struct.unpack(f"<{segments}Q", columns[9 * segments :])

    result = bytearray()
    place = 0
    seen: Counter[int] = Counter()
    for kind, skip, length in zip(kinds, skips, sizes, strict=True):
        index = min(seen[kind], 255)
        seen[kind] += 1
        if kind == 1:
            result += bytes(contents[4].next(0) for _ in range(length))  # type: ignore[attr-defined]
            continue
        before = base[place + skip : place + skip + length]
        place += skip + length
        parts = contents.get(4 * kind), contents.get(4 * kind + 1)
        result += before if kind == 0 else _residual(kind, before, index, *parts)
    assert (len(result), hashlib.sha256(result).digest()) == (size, digest)
    return bytes(result)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.position, self.bit = data, 0, 0

    def next(self, context: int) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def bits(self, count: int) -> int:
        value = 0
        for place in range(count):
            value |= (self.data[self.bit >> 3] >> (self.bit & 7) & 1) << place
            self.bit += 1
        return value


class _Rans:
    """One symbol at a time, with big integers and no numpy."""

    def __init__(self, params: int, data: bytes) -> None:
        self.lanes, tables = 1 << (params & 255), params >> 8
        size = int.from_bytes(data[:4], "little")
        chain = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0}
        model = lzma.decompress(data[4 : 4 + size], lzma.FORMAT_RAW, filters=[chain])
        assert len(model) == 8192 + 256 * tables
        self.map = model[:8192]
        self.freq = [self._normal(model[8192 + 256 * t : 8448 + 256 * t]) for t in range(tables)]
        self.states = list(struct.unpack_from(f"<{self.lanes}I", data, 4 + size))
        rest = data[4 + size + 4 * self.lanes :]
        self.words = iter(struct.unpack(f"<{len(rest) // 2}H", rest))
        self.count = 0

    @staticmethod
    def _normal(codes: bytes) -> list[int]:
        counts = [c if c < 16 else (16 + c % 16) << (c // 16 - 1) for c in codes]
        free = 16384 - sum(c > 0 for c in counts)
        freq = [1 + c * free // sum(counts) if c else 0 for c in counts]
        freq[counts.index(max(counts))] += 16384 - sum(freq)
        return freq

    def next(self, context: int) -> int:
        lane, freq = self.count % self.lanes, self.freq[self.map[context]]
        self.count += 1
        x = self.states[lane]
        symbol, start = 0, 0
        while start + freq[symbol] <= x % 16384:
            start += freq[symbol]
            symbol += 1
        x = freq[symbol] * (x // 16384) + x % 16384 - start
        self.states[lane] = x if x >= 65536 else x << 16 | next(self.words)
        return symbol


def _class(kind: int, old: int) -> int:
    if kind == 2:
        return old >> 3
    if kind == 5:
        return old >> 10 & 31
    return min(max((old >> 23 & 255) - 103, 0), 31) if kind == 6 else 0


def _residual(kind: int, before: bytes, index: int, tokens: object, extra: object) -> bytes:
    width = WIDTHS[kind]
    bits, mask = 8 * width, (1 << 8 * width) - 1
    out = bytearray()
    for place in range(0, len(before), width):
        old = int.from_bytes(before[place : place + width], "little")
        r = tokens.next(32 * index + _class(kind, old))  # type: ignore[attr-defined]
        if width > 1 and r >= 16:
            n = 4 + (r - 16) // 4
            r = (4 + r % 4) << (n - 2) | extra.bits(n - 2)  # type: ignore[attr-defined]
        step = (r >> 1) ^ (mask if r & 1 else 0)
        new = _unorder((_order(old, bits) + step) & mask, bits) if kind >= 5 else (old + step) & mask
        out += new.to_bytes(width, "little")
    return bytes(out)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float16", "float32"])
def test_a_reader_written_from_the_page_agrees(dtype: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    files = []
    for _ in range(2):
        if dtype.startswith("float"):
            weights = (np.linspace(-1, 1, 800) + random.normal(0, 1e-3, 800)).astype(dtype)
        else:
            weights = (np.linspace(-100, 100, 800) + random.integers(-2, 3, 800)).astype(dtype)
        graph = helper.make_graph([], "g", [], [], initializer=[numpy_helper.from_array(weights, "w")])
        files.append(helper.make_model(graph, ir_version=10).SerializeToString())
    plans = candidate_plans(*files)
    assert any(segment.kind in WIDTHS and WIDTHS[segment.kind] == weights.itemsize for segment in plans["tensors"])
    for plan in plans.values():
        patch = pack(*files, plan)
        assert read_by_the_page(files[0], patch) == files[1]
        (tmp_path / "base").write_bytes(files[0])
        (tmp_path / "patch").write_bytes(patch)
        apply_delta(tmp_path / "base", tmp_path / "patch", tmp_path / "out", max_result_bytes=len(files[1]))
        assert (tmp_path / "out").read_bytes() == files[1]


def test_applying_takes_little_memory_whatever_the_size(tmp_path: Path) -> None:
    """6 MiB of float32, all changed: the decoder's Python side stays below 4 MiB."""
    base = np.random.default_rng(0).normal(size=3 << 19).astype(np.float32)
    changed = base.copy()
    changed.view(np.uint32)[::1000] += 1
    (tmp_path / "a").write_bytes(base.tobytes())
    (tmp_path / "b").write_bytes(changed.tobytes())
    (tmp_path / "p").write_bytes(pack(base.tobytes(), changed.tobytes(), [Segment(Kind.ORDERED32, 0, 6 << 20)]))
    tracemalloc.start()
    apply_delta(tmp_path / "a", tmp_path / "p", tmp_path / "out", max_result_bytes=6 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out").read_bytes() == changed.tobytes()
    assert peak < 4 << 20
