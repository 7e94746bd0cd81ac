"""docs/formats/delta.md is enough to write a reader: this one follows the page and shares no code with ours."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from compiler.publish.delta.encode import pack
from compiler.publish.delta.plan import candidate_plans
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.delta.format import Kind, Predictor, Segment

WIDTHS = {2: 1, 3: 2, 4: 4, 5: 2, 6: 4, 7: 2, 8: 1}
EXPONENTS = {5: (10, 31, 0), 6: (23, 255, 61), 7: (7, 255, 61)}


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
    assert (magic, version, base_size) == (b"EWDELTA\0", 3, len(base))
    assert base_digest == hashlib.sha256(base).digest()
    position = 100 + 24 * streams
    rows = _rows(_inflate(1, 16 | 3 << 8, patch[position : position + table]), segments)
    position += table
    contents: dict[int, Any] = {}
    for row in range(streams):
        name, codec, zero, params, raw, stored = struct.unpack_from("<BBHIQQ", patch, 100 + 24 * row)
        data = patch[position : position + stored]
        contents[name] = _Rans(params, data) if codec == 3 else _Bytes(_inflate(codec, params, data))
        assert zero == 0 and (codec == 3 or len(contents[name].data) == raw)
        position += stored
    assert position == len(patch)

    result = bytearray(size)
    place = [0, 0, 0, 0]  # ends in the result, the base, and of the operands
    for kind, how, skip, base_skip, left_skip, right_skip, length, channels, inner in rows:
        predictor, per_channel = how & 127, how > 127
        start = place[0] + skip
        place[0] = start + length
        before = b""
        if kind != 1 and predictor != 2:
            before = base[place[1] + base_skip : place[1] + base_skip + length]
            place[1] += base_skip + length
        left, right = place[2] + left_skip, place[3] + right_skip
        if predictor in (1, 2):
            place[2], place[3] = left + 4 * channels, right + 4 * (channels if predictor == 1 else 1)
        if kind == 0:
            result[start : start + length] = before
        elif kind == 1:
            result[start : start + length] = bytes(contents[4].next(0) for _ in range(length))
        else:
            scales = _scales(predictor, base, result, left, right, channels, contents.get(253))
            classes = [contents[252].next(0)] * channels
            if per_channel:
                classes = [(classes[0] + contents[252].next(0)) % 256 for _ in range(channels)]
            streams_of_kind = contents[4 * kind], contents.get(4 * kind + 1)
            made = _residual(kind, predictor, before, length, scales, classes, inner, *streams_of_kind)
            result[start : start + length] = made
    assert hashlib.sha256(result).digest() == digest
    return bytes(result)


def _rows(table: bytes, count: int) -> list[tuple[int, ...]]:
    columns, position = [], 0
    for form in "BBqqqqQII":
        size = struct.calcsize(form)
        columns.append(struct.unpack_from(f"<{count}{form}", table, position))
        position += size * count
    return list(zip(*columns, strict=True))


def _scales(
    predictor: int, base: bytes, result: bytes | bytearray, left: int, right: int, channels: int, ratios: Any
) -> Any:
    """Per channel: RESCALE's ratio in float64, PRODUCT's prediction, RATIO's factor."""
    if predictor == 1:
        old, new = np.frombuffer(base, "<f4", channels, left), np.frombuffer(bytes(result), "<f4", channels, right)
        return old.astype(float) / new.astype(float)
    if predictor == 2:
        return np.frombuffer(bytes(result), "<f4", channels, left) * np.frombuffer(bytes(result), "<f4", 1, right)
    if predictor == 3:
        steps = [ratios.next(0) + 256 * ratios.next(0) for _ in range(channels)]
        return np.array([1 + (k - 65536 if k > 32767 else k) / 8192 for k in steps], np.float32)
    return [None] * channels


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
        assert len(model) == 128 + 256 * tables
        self.map = model[:128]
        self.freq = [self._normal(model[128 + 256 * t : 384 + 256 * t]) for t in range(tables)]
        self.states = list(struct.unpack_from(f"<{self.lanes}I", data, 4 + size))
        rest = data[4 + size + 4 * self.lanes :]
        self.words = iter(struct.unpack(f"<{len(rest) // 2}H", rest))
        self.count = 0

    @staticmethod
    def _normal(codes: bytes) -> list[int]:
        counts = [c if c < 16 else (16 + c % 16) << (c // 16 - 1) for c in codes]
        free = 4096 - sum(c > 0 for c in counts)
        freq = [1 + c * free // sum(counts) if c else 0 for c in counts]
        freq[counts.index(max(counts))] += 4096 - sum(freq)
        return freq

    def next(self, context: int) -> int:
        lane, freq = self.count % self.lanes, self.freq[self.map[context]]
        self.count += 1
        x = self.states[lane]
        symbol, start = 0, 0
        while start + freq[symbol] <= x % 4096:
            start += freq[symbol]
            symbol += 1
        x = freq[symbol] * (x // 4096) + x % 4096 - start
        self.states[lane] = x if x >= 65536 else x << 16 | next(self.words)
        return symbol


def _predict(kind: int, predictor: int, old: int, scale: Any) -> tuple[int, float]:
    """(predicted pattern, fraction that rounding took away)."""
    if predictor == 1:
        signed = old - (1 << 8 * WIDTHS[kind]) if old >> (8 * WIDTHS[kind] - 1) else old
        low = -(1 << (8 * WIDTHS[kind] - 1))
        exact = np.float32(signed) * np.float32(scale) if kind == 2 else np.float64(signed) * scale
        exact = min(max(exact, exact.dtype.type(low)), exact.dtype.type(-low - 1))
        whole = np.rint(exact)
        return int(whole) & ((1 << 8 * WIDTHS[kind]) - 1), float(exact - whole)
    if predictor == 2:
        return int(np.float32(scale).view(np.uint32)), 0.0
    if predictor == 3 and kind == 5:
        extreme = old & 0x7C00 == 0x7C00
        moved = np.float16(np.float32(np.uint16(old).view(np.float16)) * scale).view(np.uint16)
        return old if extreme else int(moved), 0.0
    if predictor == 3:
        extreme = not 32 <= (old >> 23 & 255) < 255
        return old if extreme else int((np.uint32(old).view(np.float32) * scale).view(np.uint32)), 0.0
    return old, 0.0


def _context(kind: int, predictor: int, old: int, fraction: float, size: int) -> int:
    """``old``: the base's element, or what was predicted where no base is read."""
    if kind in EXPONENTS:
        shift, mask, lowest = EXPONENTS[kind]
        return min(max(size - 2 * max((old >> shift & mask) - lowest, 0), 0), 63)
    if kind != 2:
        return min(size, 63)
    if predictor == 1:
        return 64 + 4 * min(size, 15) + min(int(8 * abs(fraction)), 3)
    return 4 * min(size, 15) + min((256 - old if old > 127 else old) >> 5, 3)


def _residual(
    kind: int,
    predictor: int,
    before: bytes,
    length: int,
    scales: Any,
    classes: list[int],
    inner: int,
    tokens: Any,
    extra: Any,
) -> bytes:
    width = WIDTHS[kind]
    bits, mask = 8 * width, (1 << 8 * width) - 1
    out = bytearray()
    for index in range(length // width):
        channel = index // inner % len(classes)
        old = int.from_bytes(before[index * width : (index + 1) * width], "little")
        predicted, fraction = _predict(kind, predictor, old, scales[channel])
        known = predicted if predictor == 2 else old
        r = tokens.next(_context(kind, predictor, known, fraction, classes[channel]))
        if width > 1 and r >= 16:
            n = 4 + (r - 16) // 4
            r = (4 + r % 4) << (n - 2) | extra.bits(n - 2)
        if kind == 8:
            new = sum(((old >> h & 15) + ((r >> h & 15) >> 1 ^ -(r >> h & 1))) % 16 << h for h in (0, 4))
        else:
            step = (r >> 1) ^ -(r & 1)
            step = -step if fraction < 0 else step
            ordered = kind in EXPONENTS
            new = (_order(predicted, bits) if ordered else predicted) + step & mask
            new = _unorder(new, bits) if ordered else new
        out += new.to_bytes(width, "little")
    return bytes(out)


DTYPES = ("int8", "int16", "int32", "float16", "float32")


def _net(weights: dict[str, Any], nodes: list[Any] | None = None) -> bytes:
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes or [], "g", [], [], initializer=initializers)
    return bytes(helper.make_model(graph, ir_version=10).SerializeToString(deterministic=True))


def _agree(files: list[bytes], folder: Path) -> set[tuple[Kind, Predictor, bool]]:
    """Both readers make the new file of every plan. Returns what the segments were."""
    plans = candidate_plans(*files)
    for plan in plans.values():
        patch = pack(*files, plan)
        assert read_by_the_page(files[0], patch) == files[1]
        (folder / "base").write_bytes(files[0])
        (folder / "patch").write_bytes(patch)
        apply_delta(folder / "base", folder / "patch", folder / "out", max_result_bytes=len(files[1]))
        assert (folder / "out").read_bytes() == files[1]
    return {(s.kind, s.predictor, s.per_channel) for s in plans["tensors"]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reader_written_from_the_page_agrees(dtype: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    files = []
    for _ in range(2):
        if dtype.startswith("float"):
            weights = (np.linspace(-1, 1, 800) + random.normal(0, 1e-3, 800)).astype(dtype)
        else:
            weights = (np.linspace(-100, 100, 800) + random.integers(-2, 3, 800)).astype(dtype)
        files.append(_net({"w": weights}))
    kinds = {kind for kind, _, _ in _agree(files, tmp_path)}
    assert any(WIDTHS.get(kind) == weights.itemsize for kind in kinds)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_readers_agree_on_channels_that_were_scaled_and_moved_differently(dtype: str, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    old = random.normal(0, 0.1, (12, 100))
    old[0, :4] = 0, -0.0, np.inf, 1e-39
    new = old * np.linspace(0.6, 1.5, 12)[:, None] + random.normal(0, 1e-3, old.shape) * np.logspace(-3, 0, 12)[:, None]
    new[0, :4] = old[0, :4]
    kind = Kind.ORDERED16 if dtype == "float16" else Kind.ORDERED32
    with np.errstate(over="ignore"):
        files = [_net({"w": w.astype(dtype)}) for w in (old, new)]
    assert (kind, Predictor.RATIO, True) in _agree(files, tmp_path)


def test_the_readers_agree_on_a_requantized_layer(tmp_path: Path) -> None:
    """Codes and biases follow their scales, and a bias' scales follow the weight's, which stand behind it in the file."""
    files = [_layer(1.0), _layer(1.07)]
    found = _agree(files, tmp_path)
    assert {
        (Kind.DIFF8, Predictor.RESCALE),
        (Kind.DIFF32, Predictor.RESCALE),
        (Kind.ORDERED32, Predictor.PRODUCT),
    } <= {(kind, predictor) for kind, predictor, _ in found}


def _layer(factor: float) -> bytes:
    random = np.random.default_rng(5)
    weight = random.normal(0, 0.1, (16, 80))
    scale = (factor * np.abs(weight).max(axis=1) / 127).astype(np.float32)
    tuned = weight + random.normal(0, 1e-3, weight.shape)
    codes = np.clip(np.rint(tuned / scale[:, None]), -127, 127).astype(np.int8)
    scalar = np.array([0.02], np.float32)
    bias = np.rint(random.normal(0, 1, 16) / (scale * scalar)).astype(np.int32)
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], axis=0),
    ]
    return _net({"b": bias, "bs": scale * scalar, "w": codes, "ws": scale, "xs": scalar}, nodes)


def test_the_readers_agree_on_nibbles_and_bfloat16(tmp_path: Path) -> None:
    from ml_dtypes import bfloat16, int4

    random = np.random.default_rng(6)
    old = random.normal(0, 3, 600)
    files = [_net({"n": np.clip(w, -8, 7).astype(int4), "b": w.astype(bfloat16)}) for w in (old, old + 0.01)]
    assert {Kind.DIFF4, Kind.BRAIN16} <= {kind for kind, _, _ in _agree(files, tmp_path)}


def test_stated_patches(tmp_path: Path) -> None:
    """Patches held as bytes: a reader of this version applies them, whatever the encoder makes today."""
    base = bytes(range(64)) + np.arange(1, 17, dtype="<f4").tobytes()
    (tmp_path / "base").write_bytes(base)
    for patch, digest in VECTORS:
        (tmp_path / "patch").write_bytes(bytes.fromhex(patch))
        assert apply_delta(tmp_path / "base", tmp_path / "patch", tmp_path / "out", max_result_bytes=1 << 10) == digest
        assert hashlib.sha256(read_by_the_page(base, bytes.fromhex(patch))).hexdigest() == digest


VECTORS: tuple[tuple[str, str], ...] = (
    (
        "455744454c5441000300050080000000000000007d162d61802e43de65f23b88870964469c2349cd643425c76ad4bdc71ad3"
        "619b800000000000000036fc611fd9c4ca1fe10dfa8d54b27af5a5de92a82f1154231341cbc4af19238f0200000022000000"
        "080100000c030200400000000000000011000000000000001800000000000000100000000000000010000000000000001900"
        "0000000000000f000000000000000f00000000000000fc0000000000000006000000000000000600000000000000fd000000"
        "0000000008000000000000000800000000000000e00063001a03000300a6955b0aae359f0f2695454e80055b09c86afd84c3"
        "5b2b0000e0003f00095d0000009fb5c88b14000000352c262b2a2820161e232527242526278a21b6eb141393d59a66f37c3e"
        "9f019b00ffff02080308010801080108",
        "36fc611fd9c4ca1fe10dfa8d54b27af5a5de92a82f1154231341cbc4af19238f",
    ),
    (
        "455744454c5441000300040080000000000000007d162d61802e43de65f23b88870964469c2349cd643425c76ad4bdc71ad3"
        "619b80000000000000009212ee31833b8302471e7d0fb571b6857a751313fd9fd59833bfe2d95ca782390200000025000000"
        "080100000c03020040000000000000000e000000000000001800000000000000100000000000000010000000000000001901"
        "00000c03020026000000000000000e00000000000000fc0000000000000002000000000000000200000000000000e0006300"
        "1d0300030091243602b1afffe8c4d97c80bb9f4b849594070e11087c67a9d72000e0003f00065d00006e58469800005c5858"
        "5454545450505050505050504ce0002500065d00006e2447680000b000",
        "9212ee31833b8302471e7d0fb571b6857a751313fd9fd59833bfe2d95ca78239",
    ),
)


def test_applying_takes_little_memory_whatever_the_size(tmp_path: Path) -> None:
    """6 MiB of float32, all changed: the decoder's Python side stays below 8 MiB."""
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
    assert peak < 8 << 20
