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
    *[(k, {"x": I % 5, "y": I[::-1] % 3}) for k in ("equal", "not_equal", "less", "greater_equal")],
    *[(k, {"x": L, "y": Y > 0}) for k in ("logical_and", "logical_or")],
    ("argsort", {"x": X, "axis": np.int32(1), "ascending": True}),
    ("band_part", {"x": X, "lower": np.int32(1), "upper": np.int32(0)}),
    ("band_part", {"x": X, "lower": np.int32(-1), "upper": np.int32(1)}),
    ("clamped_relu", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.6)}),
    ("elu", {"x": X, "alpha": np.float32(0.7)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.2)}),
    ("prelu", {"x": values(1, 3, 2, 4), "alpha": np.float32([0.1, 0.2, 0.3])}),
    ("softplus_parametric", {"x": X, "alpha": np.float32([0.4, 0.5, 0.6]), "beta": np.float32([1.1, 0.9, 2.0])}),
    ("einsum", {"values": (values(2, 3, 4, 5), values(2, 5, 4, 3)), "equation": "abcd,adce->abce"}),
    ("fill_like", {"ref_tensor": X, "value": np.float32(2.5)}),
    ("flatten2d", {"x": X, "axis": np.int32(2)}),
    ("identity", {"x": X}),
    ("l2_norm", {"x": values(1, 3, 4), "epsilon": np.float32(1e-4)}),
    ("layer_norm", {"x": X, "axes": np.int32([1, 2]), "gamma": Y[0], "beta": Y[1], "epsilon": np.float32(1e-3)}),
    ("quantize", {"input": X, "scale": np.float32(0.02), "zero_point": np.int8(-3), "output_dtype": "int8"}),
    ("scaled_dot_product_attention", {"query": X, "key": Y, "value": values(2, 3, 5, seed=2)}),
    ("scaled_dot_product_attention", {"query": X, "key": Y, "value": Y, "attn_mask": values(2, 3, 3, seed=3)}),
    (
        "scatter_along_axis",
        {"data": X, "indices": np.int32(I[:, :2] % 3), "updates": Y[:, :2], "axis": np.int32(1), "mode": "update"},
    ),
    ("slice_update", {"x": X, "update": Y[:, :2, 1:3], "begin": np.int32([0, 0, 1]), "end": np.int32([2, 2, 3])}),
    ("split", {"x": X, "num_splits": np.int32(2), "axis": np.int32(2)}),
    ("split", {"x": X, "split_sizes": np.int32([1, 2]), "axis": np.int32(1)}),
    ("topk", {"x": X, "k": np.int32(2), "axis": np.int32(2), "ascending": False}),
]  # fmt: skip

# Inference of coremltools 9 that cannot be held against ours, and where each operation is tested instead.
NOT_HELD = {
    "silu": "its inference computes softplus; test_ops.py, against PyTorch",
    "cumsum": "its inference raises TypeError; test_ops.py, against PyTorch",
    "reverse_sequence": "its inference gives None; test_sampling.py, by its definition",
    "cond": "it infers what its branches are, not what they compute; exporters/coreml/test_control.py, against onnxruntime",
    "const": "it is no operation to compute: program.py decodes it",
    "_const_symbolic": "it stands for sizes while a program is built; none has it",
    "list_length": "a list is no constant operand; test_lists_states_random.py, in a program that coremltools wrote",
}


@pytest.fixture(scope="module")
def builder() -> Any:
    pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder

    return Builder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kwargs"), CASES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(CASES)])
def test_against_coremltools(builder: Any, kind: str, kwargs: dict[str, Any]) -> None:
    import coremltools as ct

    inferred: list[Any] = []
    specs = [builder.TensorSpec(shape=(1,))]

    @builder.program(input_specs=specs, opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        results = getattr(builder, kind)(**kwargs)
        inferred.extend(r.val for r in (results if isinstance(results, (list, tuple)) else [results]))
        return builder.identity(x=x)

    ours = evaluate(kind, **kwargs)
    for mine, expected in zip(ours if isinstance(ours, tuple) else (ours,), inferred, strict=True):
        assert expected is not None and np.asarray(mine).shape == np.asarray(expected).shape
        np.testing.assert_allclose(np.asarray(mine), np.asarray(expected), rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_no_operation_with_an_inference_is_left_out(builder: Any) -> None:
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    inferring = {
        name
        for name, versions in SSAOpRegistry.core_ops.items()
        if any(v.value_inference is not Operation.value_inference for v in versions.values())
    }
    assert inferring - NOT_HELD.keys() == {kind for kind, _ in CASES} & inferring
    assert inferring | {"silu"} >= NOT_HELD.keys()
