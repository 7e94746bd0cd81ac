"""Operations against the values that coremltools' own MIL operations infer for constant operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtimes.coreml_reference.test_ops import evaluate, values

X, Y = values(2, 3, 4), values(2, 3, 4, seed=1)
P = np.abs(X) + np.float32(0.1)
U = np.clip(X / 4, -0.9, 0.9).astype(np.float32)
I = np.arange(24, dtype=np.int32).reshape(2, 3, 4)  # noqa: E741
L = X > 0

# Left out: silu, whose inference in coremltools 9 computes softplus, and cumsum, whose inference raises TypeError there.
CASES: list[tuple[str, dict[str, Any]]] = [
    *[(k, {"x": X}) for k in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "sign", "sin", "sinh")],
    *[(k, {"x": X}) for k in ("round", "square", "tan", "tanh", "relu", "relu6", "sigmoid", "softplus", "softsign")],
    *[(k, {"x": P}) for k in ("sqrt", "log", "rsqrt", "inverse")],
    *[(k, {"x": U}) for k in ("acos", "asin", "atanh")],
    *[(k, {"x": X, "y": Y}) for k in ("add", "sub", "mul", "real_div", "maximum", "minimum", "greater", "less_equal")],
    ("add", {"x": X, "y": Y[:, :1]}),
    ("pow", {"x": P, "y": Y}),
    ("mod", {"x": X, "y": Y}),
    ("floor_div", {"x": X, "y": Y}),
    ("floor_div", {"x": I - 12, "y": np.int32(5)}),
    ("mod", {"x": I - 12, "y": np.int32(5)}),
    ("logical_xor", {"x": L, "y": Y > 0}),
    ("logical_not", {"x": L}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.7)}),
    ("threshold", {"x": X, "alpha": np.float32(0.1)}),
    ("sigmoid_hard", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.4)}),
    ("scaled_tanh", {"x": X, "alpha": np.float32(1.3), "beta": np.float32(0.4)}),
    ("linear_activation", {"x": X, "alpha": np.float32(1.3), "beta": np.float32(0.4)}),
    ("thresholded_relu", {"x": X, "alpha": np.float32(0.3)}),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
    ("cast", {"x": X * 3, "dtype": "int32"}),
    ("cast", {"x": I, "dtype": "fp16"}),
    ("select", {"cond": L, "a": X, "b": Y}),
    ("reshape", {"x": X, "shape": np.int32([0, -1, 2])[[1, 2]]}),
    ("transpose", {"x": X, "perm": np.int32([2, 0, 1])}),
    ("expand_dims", {"x": X, "axes": np.int32([0, -1])}),
    ("squeeze", {"x": X[:, :1], "axes": np.int32([1])}),
    ("slice_by_index", {"x": X, "begin": np.int32([1, -1, 0]), "end": np.int32([2, 0, 4]), "stride": np.int32([1, -1, 2])}),
    (
        "slice_by_index",
        {
            "x": X, "begin": np.int32([1, 0, 1]), "end": np.int32([0, 2, 0]), "begin_mask": [False, True, False],
            "end_mask": [False, False, True], "squeeze_mask": [True, False, False],
        },
    ),
    ("slice_by_size", {"x": X, "begin": np.int32([0, 1, 1]), "size": np.int32([2, -1, 2])}),
    ("reverse", {"x": X, "axes": np.int32([1])}),
    ("concat", {"values": (X, Y), "axis": np.int32(1)}),
    ("stack", {"values": (X, Y), "axis": np.int32(-1)}),
    ("tile", {"x": X, "reps": np.int32([1, 2, 3])}),
    ("gather", {"x": X, "indices": np.int32([[1, 0], [0, 1]]), "axis": np.int32(1)}),
    ("gather_along_axis", {"x": X, "indices": np.int32(I % 3), "axis": np.int32(1)}),
    ("pad", {"x": X, "pad": np.int32([1, 0, 2, 1]), "mode": "constant", "constant_val": np.float32(7)}),
    ("range_1d", {"start": np.int32(2), "end": np.int32(11), "step": np.int32(4)}),
    ("fill", {"shape": np.int32([2, 3]), "value": np.float32(4)}),
    ("non_zero", {"x": I % 2}),
    ("shape", {"x": X}),
    ("mod", {"x": I - 12, "y": np.int32(-5)}),
    ("floor_div", {"x": I - 12, "y": np.int32(-5)}),
    ("softmax", {"x": X, "axis": np.int32(1)}),
    ("matmul", {"x": X, "y": Y, "transpose_y": True}),
    ("linear", {"x": X[0], "weight": Y[0], "bias": values(3)}),
    *[
        (f"reduce_{k}", {"x": P, "axes": np.int32([0, 2]), "keep_dims": True})
        for k in ("l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square")
    ],
    ("reduce_argmax", {"x": X, "axis": np.int32(1), "keep_dims": False}),
    ("reduce_argmin", {"x": X, "axis": np.int32(-1), "keep_dims": True}),
]  # fmt: skip


@pytest.fixture(scope="module")
def builder() -> Any:
    pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder

    return Builder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kwargs"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_against_coremltools(builder: Any, kind: str, kwargs: dict[str, Any]) -> None:
    inferred: list[Any] = []

    @builder.program(input_specs=[builder.TensorSpec(shape=(1,))])  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        inferred.append(getattr(builder, kind)(**kwargs).val)
        return builder.identity(x=x)

    expected = np.asarray(inferred[0])
    ours = np.asarray(evaluate(kind, **kwargs))
    assert inferred[0] is not None and ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)
