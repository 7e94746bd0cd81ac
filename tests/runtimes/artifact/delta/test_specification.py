"""docs/formats/delta.md is enough to write a reader: this one follows the page and shares no code with ours."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import tracemalloc
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
    assert (magic, version, base_size) == (b"EWDELTA\0", 1, len(base))
    assert base_digest == hashlib.sha256(base).digest()
    position = 100 + 24 * streams
    columns = _inflate(1, 16 | 3 << 8, patch[position : position + table])
    position += table
    contents: dict[int, memoryview] = {}
    for row in range(streams):
        name, codec, zero, params, raw, stored = struct.unpack_from("<BBHIQQ", patch, 100 + 24 * row)
        contents[name] = memoryview(_inflate(codec, params, patch[position : position + stored]))
        assert zero == 0 and len(contents[name]) == raw
        position += stored
    assert position == len(patch)
    kinds = columns[:segments]
    skips = struct.unpack(f"<{segments}q", columns[segments : 9 * segments])
    sizes = struct.unpack(f"<{segments}Q", columns[9 * segments :])

    def take(stream: int, count: int) -> bytes:
        data, contents[stream] = contents[stream][:count], contents[stream][count:]
        return bytes(data)

    result = bytearray()
    place = 0
    for kind, skip, length in zip(kinds, skips, sizes, strict=True):
        if kind == 1:
            result += take(4, length)
            continue
        before = base[place + skip : place + skip + length]
        place += skip + length
        result += before if kind == 0 else _residual(kind, before, take)
    assert (len(result), hashlib.sha256(result).digest()) == (size, digest)
    return bytes(result)


def _residual(kind: int, before: bytes, take: object) -> bytes:
    assert callable(take)
    width = WIDTHS[kind]
    bits, mask = 8 * width, (1 << 8 * width) - 1
    planes = [take(4 * kind + plane, len(before) // width) for plane in range(width)]
    out = bytearray()
    for index in range(len(before) // width):
        old = int.from_bytes(before[width * index : width * (index + 1)], "little")
        r = sum(plane[index] << 8 * shift for shift, plane in enumerate(planes))
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
