"""Operations against PyTorch, on seeded random parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference import ops  # noqa: F401
from runtimes.coreml_reference.program import Operation
from runtimes.coreml_reference.registry import EVALUATIONS, Call
from runtimes.coreml_reference.types import TensorList
from runtimes.session import Array

torch = pytest.importorskip("torch")
F = torch.nn.functional
RTOL, ATOL = 2e-5, 2e-5  # float32 sums of up to a few hundred terms in another order


def evaluate(kind: str, **kwargs: Any) -> Any:
    args = {k: (v if isinstance(v, (str, tuple, TensorList)) else np.asarray(v),) for k, v in kwargs.items()}
    return EVALUATIONS.get(kind)(Call(Operation(kind, kind, {}, ()), args))  # type: ignore[arg-type]


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(ours: Any, theirs: Any) -> None:
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("seed", range(24))
def test_conv(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 4]))
    kernel, stride, dilation = (rng.integers(1, 4, rank).tolist() for _ in range(3))
    pad = rng.integers(0, 3, rank).tolist()
    x = values(2, 4, *rng.integers(8, 12, rank), seed=seed)
    weight, bias = values(4 * int(rng.integers(1, 3)), 4 // groups, *kernel, seed=seed + 1), None
    if seed % 2:
        bias = values(weight.shape[0], seed=seed + 2)
    ours = evaluate(
        "conv", x=x, weight=weight, strides=stride, dilations=dilation, groups=groups, pad_type="custom",
        pad=[p for p in pad for _ in range(2)], **({} if bias is None else {"bias": bias}),
    )  # fmt: skip
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    tensors = [torch.from_numpy(a) if a is not None else None for a in (x, weight, bias)]
    close(ours, conv(*tensors, stride, pad, dilation, groups))


@pytest.mark.parametrize("seed", range(12))
def test_conv_transpose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank, groups = int(rng.integers(1, 3)), int(rng.choice([1, 2]))
    kernel, stride = rng.integers(2, 5, rank).tolist(), rng.integers(1, 4, rank).tolist()
    dilation, pad = rng.integers(1, 3, rank).tolist(), rng.integers(0, 2, rank).tolist()
    x, weight = values(2, 4, *rng.integers(4, 7, rank), seed=seed), values(4, 3, *kernel, seed=seed + 1)
    ours = evaluate(
        "conv_transpose", x=x, weight=weight, strides=stride, dilations=dilation, groups=groups, pad_type="custom",
        pad=[p for p in pad for _ in range(2)],
    )  # fmt: skip
    conv = (F.conv_transpose1d, F.conv_transpose2d)[rank - 1]
    close(ours, conv(torch.from_numpy(x), torch.from_numpy(weight), None, stride, pad, 0, groups, dilation))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 3, 2), (5, 2, 1)])
def test_pool(kernel: int, stride: int, pad: int, exclude: bool, ceil_mode: bool) -> None:
    x = values(1, 2, 11, 8)
    shared = {
        "x": x, "kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "pad_type": "custom", "pad": [pad] * 4,
        "ceil_mode": ceil_mode,
    }  # fmt: skip
    t = torch.from_numpy(x)
    close(
        evaluate("avg_pool", exclude_padding_from_average=exclude, **shared),
        F.avg_pool2d(t, kernel, stride, pad, ceil_mode, not exclude),
    )
    close(evaluate("max_pool", **shared), F.max_pool2d(t, kernel, stride, pad, ceil_mode=ceil_mode))


@pytest.mark.parametrize("pad_type", ["same", "same_lower"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 2, 1), (9, 4, 3)])
def test_same_padding(size: int, kernel: int, stride: int, pad_type: str) -> None:
    x, weight = values(1, 1, size), values(1, 1, kernel)
    ours = evaluate("conv", x=x, weight=weight, strides=[stride], pad_type=pad_type)
    count = -(-size // stride)
    total = max((count - 1) * stride + kernel - size, 0)
    before = total // 2 if pad_type == "same" else total - total // 2
    padded = F.pad(torch.from_numpy(x), (before, total - before))
    close(ours, F.conv1d(padded, torch.from_numpy(weight), stride=stride))


X = values(2, 4, 5, 6)
T = torch.from_numpy(X)
G, B, M, V = values(4, seed=1), values(4, seed=2), values(4, seed=3), np.abs(values(4, seed=4)) + 0.1
g, b, m, v = (torch.from_numpy(a) for a in (G, B, M, V))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: evaluate("batch_norm", x=X, mean=M, variance=V, gamma=G, beta=B), lambda: F.batch_norm(T, m, v, g, b)),
        (lambda: evaluate("instance_norm", x=X, gamma=G, beta=B), lambda: F.instance_norm(T, weight=g, bias=b)),
        (lambda: evaluate("layer_norm", x=X, axes=[2, 3]), lambda: F.layer_norm(T, (5, 6))),
        (
            lambda: evaluate("local_response_norm", x=X, size=3, alpha=0.5, k=2.0),
            lambda: F.local_response_norm(T, 3, 0.5, 0.75, 2.0),
        ),
        (lambda: evaluate("gelu", x=X), lambda: F.gelu(T)),
        (lambda: evaluate("gelu", x=X, mode="TANH_APPROXIMATION"), lambda: F.gelu(T, approximate="tanh")),
        (lambda: evaluate("erf", x=X * 3), lambda: torch.erf(T * 3)),
        (lambda: evaluate("silu", x=X * 50), lambda: F.silu(T * 50)),
        (lambda: evaluate("sigmoid", x=X * 100), lambda: torch.sigmoid(T * 100)),
        (lambda: evaluate("softplus", x=X * 30), lambda: F.softplus(T * 30)),
        (lambda: evaluate("softmax", x=X * 40, axis=1), lambda: torch.softmax(T * 40, 1)),
        (lambda: evaluate("elu", x=X, alpha=0.7), lambda: F.elu(T, 0.7)),
        (lambda: evaluate("leaky_relu", x=X, alpha=0.2), lambda: F.leaky_relu(T, 0.2)),
        (lambda: evaluate("prelu", x=X, alpha=G), lambda: F.prelu(T, g)),
        (lambda: evaluate("pixel_shuffle", x=X, upscale_factor=2), lambda: F.pixel_shuffle(T, 2)),
        (lambda: evaluate("pixel_unshuffle", x=X[:, :, :4], downscale_factor=2), lambda: F.pixel_unshuffle(T[:, :, :4], 2)),
        (
            lambda: evaluate("upsample_bilinear", x=X, scale_factor_height=2, scale_factor_width=3, align_corners=False),
            lambda: F.interpolate(T, (10, 18), mode="bilinear"),
        ),
        (
            lambda: evaluate("upsample_bilinear", x=X, scale_factor_height=2, scale_factor_width=3),
            lambda: F.interpolate(T, (10, 18), mode="bilinear", align_corners=True),
        ),
        (
            lambda: evaluate("resize_nearest_neighbor", x=X, target_size_height=7, target_size_width=9),
            lambda: F.interpolate(T, (7, 9), mode="nearest"),
        ),
        (lambda: evaluate("reduce_log_sum_exp", x=X * 90, axes=[1]), lambda: torch.logsumexp(T * 90, 1)),
        (lambda: evaluate("cumsum", x=X, axis=1), lambda: torch.cumsum(T, 1)),
        (lambda: evaluate("topk", x=X, k=3, axis=2)[0], lambda: torch.topk(T, 3, 2)[0]),
        (lambda: evaluate("pad", x=X, pad=[1, 2, 3, 0], mode="reflect"), lambda: F.pad(T, (3, 0, 1, 2), mode="reflect")),
        (lambda: evaluate("pad", x=X, pad=[1, 2, 3, 0], mode="replicate"), lambda: F.pad(T, (3, 0, 1, 2), mode="replicate")),
        (lambda: evaluate("band_part", x=X, lower=-1, upper=0), lambda: torch.tril(T)),
        (
            lambda: evaluate("scaled_dot_product_attention", query=X, key=X, value=X),
            lambda: F.scaled_dot_product_attention(T, T, T),
        ),
        (lambda: evaluate("einsum", equation="abcd,abed->abce", values=(X, X)), lambda: torch.einsum("abcd,abed->abce", T, T)),
    ],
)  # fmt: skip
def test_against_torch(ours: Any, theirs: Any) -> None:
    close(ours(), theirs())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm(bidirectional: bool) -> None:
    net = torch.nn.LSTM(3, 5, bidirectional=bidirectional)
    x, size = values(7, 2, 3), 5 * (1 + bidirectional)
    h, c = values(2, size, seed=1), values(2, size, seed=2)

    def gates(tensor: Any) -> Array:  # torch: i f g o; MIL: i f o g
        i, f, cell, o = tensor.detach().chunk(4)
        return torch.cat([i, f, o, cell]).numpy()

    weights: dict[str, Array] = {}
    for suffix, ours in (("", ""), *([("_reverse", "_back")] if bidirectional else [])):
        weights[f"weight_ih{ours}"] = gates(getattr(net, f"weight_ih_l0{suffix}"))
        weights[f"weight_hh{ours}"] = gates(getattr(net, f"weight_hh_l0{suffix}"))
        weights[f"bias{ours}"] = gates(getattr(net, f"bias_ih_l0{suffix}") + getattr(net, f"bias_hh_l0{suffix}"))
    sequence, last_h, last_c = evaluate(
        "lstm", x=x, initial_h=h, initial_c=c, output_sequence=True,
        direction="bidirectional" if bidirectional else "forward", **weights,
    )  # fmt: skip

    def stacked(a: Array) -> Any:
        return torch.from_numpy(np.stack(np.split(a, 1 + bidirectional, axis=1)))

    with torch.no_grad():
        want, (want_h, want_c) = net(torch.from_numpy(x), (stacked(h), stacked(c)))
    close(sequence, want)
    close(last_h, torch.cat(list(want_h), 1))
    close(last_c, torch.cat(list(want_c), 1))


@pytest.mark.parametrize(
    ("exclusive", "reverse", "expected"),
    [(False, False, [1, 3, 6]), (True, False, [0, 1, 3]), (False, True, [6, 5, 3]), (True, True, [5, 3, 0])],
)
def test_cumsum_modes(exclusive: bool, reverse: bool, expected: list[int]) -> None:
    x = np.int32([1, 2, 3])
    assert evaluate("cumsum", x=x, exclusive=exclusive, reverse=reverse).tolist() == expected


def test_quantize_rounds_ties_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, -0.5, 1000, -1000, 2.4], np.float32)
    q = evaluate("quantize", input=x, scale=np.float32(1), zero_point=np.int8(3), output_dtype="int8")
    assert q.tolist() == [3, 5, 3, 127, -128, 5]
    back = evaluate("dequantize", input=q, scale=np.float32(0.5), zero_point=np.int8(3))
    assert back.tolist() == [0, 1, 0, 62, -65.5, 1]


def test_documented_constexpr_examples() -> None:
    """The worked examples in the iOS16 and iOS18 documentation of the operations."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    dense = evaluate("constexpr_lut_to_dense", indices=indices, lut=lut)
    assert dense.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    vector_indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    vector_lut = np.array([1, 2, 3, 4, 5, 6], np.int8).reshape(1, 1, 1, 2, 3)
    dense = evaluate("constexpr_lut_to_dense", indices=vector_indices, lut=vector_lut, vector_axis=2)
    assert dense[0].tolist() == [[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]]
    dense = evaluate("constexpr_lut_to_dense", indices=vector_indices, lut=vector_lut, vector_axis=1)
    assert dense[0].tolist() == [[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.uint8)
    _, nonzero = evaluate(
        "constexpr_sparse_blockwise_shift_scale", data_mask=mask, nonzero_data=np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8),
        scale=np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), offset=np.array([[1, 2, 3, 4]], np.int8),
    )  # fmt: skip
    np.testing.assert_allclose(nonzero, [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4], rtol=1e-6)
    packed = evaluate(
        "constexpr_lut_to_dense",
        indices=np.array([0b01101100, 3], np.uint8),
        lut=np.float32([5, 6, 7, 8]),
        shape=np.uint32([5]),
    )
    assert packed.tolist() == [5, 8, 7, 6, 8]


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("tile", {"x": X, "reps": [1 << 30] * 4}),
        ("fill", {"shape": [1 << 40]}),
        ("range_1d", {"start": np.float32(0), "end": np.float32(1e30), "step": np.float32(1)}),
        ("pad", {"x": X, "pad": [1 << 40, 0]}),
        ("upsample_bilinear", {"x": X, "scale_factor_height": np.float32(1e9)}),
        ("conv", {"x": X, "weight": G.reshape(1, 4, 1, 1), "pad_type": "custom", "pad": [1 << 30] * 4}),
    ],
)
def test_absurd_sizes_are_refused_before_allocation(kind: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exceed"):
        evaluate(kind, **kwargs)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2])
def test_gather_nd_reads_what_each_row_names(batch: int, width: int) -> None:
    """Row by row, as the documentation words it; coremltools infers no values for this operation."""
    x = values(2, 3, 4, 5)
    limits = x.shape[batch : batch + width]
    indices = np.random.default_rng(width).integers(0, limits, (*x.shape[:batch], 6, width)).astype(np.int32)
    ours = evaluate("gather_nd", x=x, indices=indices, batch_dims=batch)
    assert ours.shape == (*indices.shape[:-1], *x.shape[batch + width :])
    for place in np.ndindex(*indices.shape[:-1]):
        np.testing.assert_array_equal(ours[place], x[(*place[:batch], *indices[place])])


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_topk_indices_of_distinct_values(axis: int, ascending: bool) -> None:
    x = np.random.default_rng(5).permutation(60).reshape(3, 4, 5).astype(np.float32)
    ours = evaluate("topk", x=x, k=3, axis=axis, ascending=ascending)
    for mine, theirs in zip(ours, torch.topk(torch.from_numpy(x), 3, axis, largest=not ascending), strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru(direction: str) -> None:
    """PyTorch has a bias of its own inside the reset product; at zero the two definitions coincide."""
    net = torch.nn.GRU(3, 5)
    x, h = values(6, 2, 3), values(2, 5, seed=1)

    def gates(tensor: Any) -> Array:  # torch: r z n; MIL: r o z
        r, z, n = tensor.detach().chunk(3)
        return torch.cat([r, n, z]).numpy()

    with torch.no_grad():
        net.bias_hh_l0.zero_()
        seen = torch.from_numpy(x if direction == "forward" else x[::-1].copy())
        want, want_h = net(seen, torch.from_numpy(h[None]))
    sequence, last = evaluate(
        "gru", x=x, initial_h=h, weight_ih=gates(net.weight_ih_l0), weight_hh=gates(net.weight_hh_l0),
        bias=gates(net.bias_ih_l0), direction=direction, output_sequence=True,
    )  # fmt: skip
    close(sequence, want if direction == "forward" else torch.flip(want, (0,)))
    close(last, want_h[0])
