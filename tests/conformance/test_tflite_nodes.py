"""ONNX's node tests through the TFLite exporter and LiteRT: each passes at the suite's own tolerance or is refused.

REFUSED is strict both ways: a case that starts to pass, or starts to be refused, must change the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.exporters.tflite import ops as _ops  # noqa: F401  (fills the table)
from compiler.exporters.tflite.table import TFLITE
from profiles.schema import Precision
from runtimes.litert_session import OPENER
from runtimes.session import SessionOptions
from tests.conformance.node_cases import Case, cases

pytest.importorskip("ai_edge_litert")
# Quantized forms are covered by tests/compiler/exporters/tflite: there a pair is no operator of its own.
OPERATORS = set(TFLITE.op_types()) - {"QuantizeLinear", "DequantizeLinear"}
OPTIONS = ExportOptions(precision=Precision.FP32)
REFUSED = frozenset(
    {
        "test_add_int16",
        "test_add_int8",
        "test_add_uint16",
        "test_add_uint32",
        "test_add_uint64",
        "test_add_uint8",
        "test_averagepool_2d_dilations",
        "test_averagepool_3d_default",
        "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False",
        "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True",
        "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False",
        "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True",
        "test_averagepool_3d_dilations_small",
        "test_batchnorm_epsilon_training_mode",
        "test_batchnorm_example_training_mode",
        "test_clip_default_int8_inbounds",
        "test_convtranspose_3d",
        "test_convtranspose_dilations",
        "test_convtranspose_group_2",
        "test_convtranspose_group_2_image_3",
        "test_convtranspose_output_shape",
        "test_div_int16",
        "test_div_int8",
        "test_div_uint16",
        "test_div_uint32",
        "test_div_uint64",
        "test_div_uint8",
        "test_dropout_default_mask",
        "test_equal_int16",
        "test_equal_int8",
        "test_equal_string",
        "test_equal_string_broadcast",
        "test_equal_uint16",
        "test_equal_uint32",
        "test_equal_uint64",
        "test_equal_uint8",
        "test_greater_equal_int16",
        "test_greater_equal_int8",
        "test_greater_equal_uint16",
        "test_greater_equal_uint32",
        "test_greater_equal_uint64",
        "test_greater_equal_uint8",
        "test_greater_int16",
        "test_greater_int8",
        "test_greater_uint16",
        "test_greater_uint32",
        "test_greater_uint64",
        "test_greater_uint8",
        "test_less_equal_int16",
        "test_less_equal_int8",
        "test_less_equal_uint16",
        "test_less_equal_uint32",
        "test_less_equal_uint64",
        "test_less_equal_uint8",
        "test_less_int16",
        "test_less_int8",
        "test_less_uint16",
        "test_less_uint32",
        "test_less_uint64",
        "test_less_uint8",
        "test_max_float16",
        "test_max_float64",
        "test_max_int16",
        "test_max_int8",
        "test_max_uint16",
        "test_max_uint32",
        "test_max_uint64",
        "test_max_uint8",
        "test_maxpool_2d_dilations",
        "test_maxpool_2d_uint8",
        "test_maxpool_3d_default",
        "test_maxpool_3d_dilations",
        "test_maxpool_3d_dilations_use_ref_impl",
        "test_maxpool_3d_dilations_use_ref_impl_large",
        "test_maxpool_with_argmax_2d_precomputed_pads",
        "test_maxpool_with_argmax_2d_precomputed_strides",
        "test_min_float16",
        "test_min_float64",
        "test_min_int16",
        "test_min_int8",
        "test_min_uint16",
        "test_min_uint32",
        "test_min_uint64",
        "test_min_uint8",
        "test_mul_int16",
        "test_mul_int8",
        "test_mul_uint16",
        "test_mul_uint32",
        "test_mul_uint64",
        "test_mul_uint8",
        "test_pow_types_float32_int32",
        "test_pow_types_float32_int64",
        "test_pow_types_float32_uint32",
        "test_pow_types_float32_uint64",
        "test_pow_types_int32_float32",
        "test_pow_types_int32_int32",
        "test_pow_types_int64_float32",
        "test_pow_types_int64_int64",
        "test_reduce_max_bool_inputs",
        "test_reduce_max_empty_set_bool",
        "test_reduce_min_bool_inputs",
        "test_resize_downsample_scales_cubic",
        "test_resize_downsample_scales_cubic_A_n0p5_exclude_outside",
        "test_resize_downsample_scales_cubic_align_corners",
        "test_resize_downsample_scales_cubic_antialias",
        "test_resize_downsample_scales_linear",
        "test_resize_downsample_scales_linear_align_corners",
        "test_resize_downsample_scales_linear_antialias",
        "test_resize_downsample_scales_linear_half_pixel_symmetric",
        "test_resize_downsample_sizes_cubic",
        "test_resize_downsample_sizes_cubic_antialias",
        "test_resize_downsample_sizes_linear_antialias",
        "test_resize_downsample_sizes_linear_pytorch_half_pixel",
        "test_resize_tf_crop_and_resize",
        "test_resize_tf_crop_and_resize_axes_2_3",
        "test_resize_tf_crop_and_resize_axes_3_2",
        "test_resize_tf_crop_and_resize_extrapolation_value",
        "test_resize_upsample_scales_cubic",
        "test_resize_upsample_scales_cubic_A_n0p5_exclude_outside",
        "test_resize_upsample_scales_cubic_align_corners",
        "test_resize_upsample_scales_cubic_asymmetric",
        "test_resize_upsample_scales_linear_half_pixel_symmetric",
        "test_resize_upsample_sizes_cubic",
        "test_sub_int16",
        "test_sub_int8",
        "test_sub_uint16",
        "test_sub_uint32",
        "test_sub_uint64",
        "test_sub_uint8",
        "test_wrap_pad",
    }
)
CASES = cases(OPERATORS)


def test_the_table_names_existing_cases() -> None:
    assert {case.name for case in CASES} >= REFUSED
    assert len(CASES) > 250


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node(case: Case, tmp_path: Path) -> None:
    model = ir.from_proto(case.model)
    refusals = EXPORTER.check(model, OPTIONS)
    assert bool(refusals) == (case.name in REFUSED), refusals
    if refusals:
        assert all(refusal.reason and refusal.remedy for refusal in refusals)
        return
    path = EXPORTER.export(model, tmp_path / "m.tflite", OPTIONS).path
    with OPENER.open(path, SessionOptions()) as session:
        outputs = session.run(case.feeds)
    for name, expected in case.expected.items():
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, rtol=case.rtol, atol=case.atol)
