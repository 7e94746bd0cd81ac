"""rANS: exact in any contexts and any reading steps, near the entropy, a stated vector, typed errors for damage."""

from __future__ import annotations

import hashlib
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.publish.delta.rans import encode_rans, lanes_log2, model_of
from compiler.publish.delta.streams import _packed
from runtimes.artifact.delta.codecs import codec_by_id, damaged
from runtimes.artifact.delta.rans import CONTEXTS, RansDecoder, counts_of, frequencies
from runtimes.artifact.delta.tokens import TOKENS, BitReader, split
from runtimes.errors import DeltaError


def _coded(symbols: np.ndarray, contexts: np.ndarray) -> tuple[int, bytes]:  # type: ignore[type-arg]
    return encode_rans(symbols, contexts, model_of(symbols, contexts))


def _decoder(params: int, data: bytes) -> RansDecoder:
    return RansDecoder(io.BytesIO(data).read, params, damaged)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 30_000),
    spread=st.sampled_from([0.1, 3, 300]),
    step=st.integers(1, 9000),
)
def test_any_symbols_in_any_contexts_round_trip(seed: int, count: int, spread: float, step: int) -> None:
    random = np.random.default_rng(seed)
    contexts = random.integers(0, CONTEXTS, count).astype(np.uint8) // 5 * 5
    symbols = (np.abs(random.normal(0, spread, count)) * (1 + contexts % 3)).astype(np.int64).astype(np.uint8)
    params, data = _coded(symbols, contexts)
    decoder = _decoder(params, data)
    parts = [decoder.read(len(contexts[i : i + step]), contexts[i : i + step]) for i in range(0, count, step)]
    assert b"".join(parts) == symbols.tobytes()


def test_two_contexts_come_within_one_and_a_half_percent_of_their_entropies() -> None:
    random = np.random.default_rng(0)
    contexts = np.repeat(np.array([3, 40], np.uint8), 200_000)
    symbols = np.concatenate([random.binomial(4, 0.05, 200_000), random.binomial(200, 0.5, 200_000)]).astype(np.uint8)
    floor = 0.0
    for half in np.split(symbols, 2):
        share = np.unique(half, return_counts=True)[1] / half.size
        floor -= half.size * float((share * np.log2(share)).sum()) / 8
    _, data = _coded(symbols, contexts)
    assert floor < len(data) < 1.015 * floor


@settings(deadline=None)
@given(stream=st.integers(1, 1 << 26), share=st.floats(0.001, 1), count=st.integers(1, 1 << 28))
def test_lanes_cost_little_of_their_stream_and_of_the_patch(stream: int, share: float, count: int) -> None:
    """Unless nearly every symbol is free: then at most one lane for 8192 of them. Lanes are powers of two, three bytes each."""
    patch = stream / share
    cost = 3 * (1 << lanes_log2(stream, patch, count)) / 2**0.5
    assert cost <= max(stream * 3 / 72, count * 3 / 8192, 3) * 1.001
    assert cost <= max(patch * 3 / 100, count * 3 / 8192, 3) * 1.001


def test_a_small_stream_of_a_large_patch_takes_few_steps() -> None:
    alone, within = (1 << lanes_log2(10_000, patch, 17_000) for patch in (10_000, 650_000))
    assert within > 2 * alone


def test_the_stated_vector() -> None:
    """The bytes of one small stream: a change of the format shows here."""
    symbols = np.array([0, 1, 0, 0, 2, 0, 7, 0] * 16, np.uint8)
    params, data = _coded(symbols, np.zeros(128, np.uint8))
    assert (params, len(data)) == VECTOR[:2]
    assert hashlib.sha256(data).hexdigest()[:16] == VECTOR[2]


VECTOR = (256, 54, "a203b5fff39010b1")


def test_frequencies_fill_the_slots_whatever_the_counts() -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 256, (500, 256)).astype(np.uint8) * random.integers(0, 2, (500, 256)).astype(np.uint8)
    codes[:, 7] = 1
    codes[0], codes[1], codes[2, 128:] = 255, 1, 1
    freq = frequencies(counts_of(codes))
    assert (freq.sum(axis=1) == 1 << 12).all() and freq.min() >= 0
    assert ((freq > 0) == (codes > 0)).all()


def test_damage_is_typed_or_gives_other_bytes() -> None:
    random = np.random.default_rng(2)
    symbols, contexts = random.binomial(20, 0.3, 600).astype(np.uint8), np.zeros(600, np.uint8)
    params, data = _coded(symbols, contexts)
    tracemalloc.start()
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 0x55
        try:
            assert len(_decoder(params, bytes(bad)).read(600, contexts)) == 600
        except DeltaError as error:
            assert error.remedy
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < codec_by_id(3).memory_bytes(params)
    for cut in range(len(data) - 2):
        with pytest.raises(DeltaError):
            _decoder(params, data[:cut]).read(600, contexts)


@pytest.mark.parametrize("params", [13 | 1 << 8, 0, 65 << 8, 255 | 1 << 8])
def test_absurd_parameters_are_refused(params: int) -> None:
    with pytest.raises(DeltaError):
        codec_by_id(3).memory_bytes(params)


@pytest.mark.parametrize("width", [2, 4])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_tokens_and_extra_bits_give_every_residual_back(width: int, data: st.DataObject) -> None:
    top = data.draw(st.sampled_from([16, 300, 1 << 8 * width]))
    values = np.array(data.draw(st.lists(st.integers(0, top - 1), min_size=1, max_size=60)), f"<u{width}")
    values[-1] = top - 1
    token, bits, count = split(values)
    assert token.max() < TOKENS and (bits >> count == 0).all()
    reader = BitReader(io.BytesIO(_packed(bits[count > 0], count[count > 0])).read, damaged)
    cut = len(values) // 3
    joined = [reader.join(part.tobytes(), width) for part in (token[:cut], token[cut:])]
    np.testing.assert_array_equal(np.concatenate(joined), values)


def test_a_token_too_large_for_its_width_and_missing_bits_are_refused() -> None:
    for token, width in ((200, 4), (64, 2), (16, 2)):
        with pytest.raises(DeltaError):
            BitReader(lambda size: _short(size), damaged).join(bytes([token]), width)


def _short(size: int) -> bytes:
    if size:
        raise damaged("there are no more bits")
    return b""
