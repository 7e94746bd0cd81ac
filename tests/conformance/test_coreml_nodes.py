"""ONNX's node tests through the Core ML exporter: the answer is right, or the refusal has the reason stated here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from profiles.schema import Precision
from tests.compiler.exporters.coreml.support import exported_answers
from tests.conformance.coreml_cases import NodeCase, node_cases

# Which cases are refused at iOS17, by a pattern of their names, and why. Everything else has to work.
REFUSED = {
    r"test_arg(max|min)_.*_select_last_index": "the last of equal values",
    r"test_(averagepool|maxpool)_.*_dilations.*": "has no dilations",
    r"test_batchnorm_.*_training_mode": "training mode",
    r"test_training_dropout.*": "training mode|mask",
    r"test_dropout_default_mask.*": "mask",
    r"test_maxpool_with_argmax_.*": "indices",
    r"test_maxpool_2d_uint8": "expects tensor or scalar of dtype",
    r"test_(add|sub|mul|div|equal|greater|greater_equal|less|less_equal|max|min)_u?int8": "expects tensor or scalar of dtype",
    r"test_clip_default_int8_(min|max)": "expects tensor or scalar of dtype",
    r"test_reduce_(max|min)_bool_inputs": "expects tensor or scalar of dtype",
    r"test_(quantize|dequantize)linear_blocked.*": "block quantization",
    r"test_(edge|reflect)_pad": "pads floats only",
    r"test_wrap_pad": "no padding mode 'wrap'",
    r"test_pow_types_int(32|64)_float32": "integer base with a float exponent",
    r"test_pow_bcast_scalar|test_gemm_default_scalar_bias": "rank 0",
    r"test_reduce_.*_empty_set.*|test_reshape_allowzero_reordered|test_slice_start_out_of_bounds": "is empty",
    r"test_split_zero_size_splits_.*": "is empty",
    r"test_unsqueeze_(three|unsorted)_axes": "has rank 6",
    r"test_resize_.*(cubic|crop_and_resize|symmetric|antialias).*": "no equivalent|neither antialias|whole sizes",
    r"test_resize_.*_not_(larger|smaller)": "aspect ratio",
    r"test_resize_downsample_(scales_nearest|scales_linear)": "whole sizes",
    r"test_resize_downsample_(scales_linear_align_corners|sizes_linear_pytorch_half_pixel)": "single element",
    r"test_resize_(up|down)sample_sizes_nearest(_ceil.*|_floor.*|_round.*|_axes.*)?": "has no equivalent",
}


def _expected_refusal(name: str) -> str | None:
    return next((reason for pattern, reason in REFUSED.items() if re.fullmatch(pattern, name)), None)


def _compare(case: NodeCase, folder: Path, target: str) -> None:
    got = exported_answers(case.model, case.feeds, folder, target=target)
    for name, want in case.want.items():
        # float32 sums in another order: eight ulps at magnitude one, where the case asks for less.
        np.testing.assert_allclose(got[name], want, rtol=case.rtol, atol=max(case.atol, 1e-6), err_msg=case.name)


def test_there_are_cases_for_most_lowerings() -> None:
    assert len(node_cases()) > 500


def test_every_node_case_is_right_or_refused_with_its_reason(tmp_path: Path) -> None:
    refused = 0
    for case in node_cases().values():
        reason = _expected_refusal(case.name)
        if reason is None:
            _compare(case, tmp_path, "iOS17")
            continue
        refusals = EXPORTER.check(case.model, ExportOptions(Precision.FP32))
        assert refusals, f"{case.name} is no longer refused: take it out of REFUSED"
        assert any(re.search(reason, r.reason) for r in refusals), (case.name, refusals)
        refused += 1
    assert refused < 0.25 * len(node_cases())


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_other_targets_agree_where_they_accept(tmp_path: Path, target: str) -> None:
    ran = 0
    for name, case in node_cases().items():
        if ran >= 80 or _expected_refusal(name) or "quantize" in name or hash_of(name) % 4:
            continue
        if EXPORTER.check(case.model, ExportOptions(Precision.FP32, target)):
            assert target == "iOS15" and _has_bytes(case), name
            continue
        _compare(case, tmp_path, target)
        ran += 1
    assert ran >= 60


def hash_of(name: str) -> int:
    """A stable number to take every fourth case by."""
    return sum(name.encode())


def _has_bytes(case: NodeCase) -> bool:
    """iOS15 casts no bytes, the one thing in which it accepts less than iOS17 here."""
    return any(a.dtype in (np.int8, np.uint8) for a in [*case.feeds.values(), *case.want.values()])
