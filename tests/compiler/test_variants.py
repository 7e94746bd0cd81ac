from __future__ import annotations

import pytest

from compiler.errors import DataError
from compiler.naming import model_name
from compiler.variants import plan_variants, strictest
from profiles.catalog import load_profile
from profiles.schema import Format, Precision


def test_without_profile_every_format_and_precision() -> None:
    assert len(plan_variants((), (), ())) == 9


def test_a_format_without_the_precision_is_left_out_unless_it_was_named() -> None:
    formats = [v.format for v in plan_variants((), (), (Precision.INT8_DYNAMIC,))]
    assert formats == [Format.ONNX, Format.TFLITE]
    with pytest.raises(DataError, match="no coreml artifact") as caught:
        plan_variants((), (Format.COREML,), (Precision.INT8_DYNAMIC,))
    assert "int8-weights" in caught.value.remedy


def test_four_bits_raise_the_default_deployment_target_only() -> None:
    (four,) = plan_variants((), (Format.COREML,), (Precision.INT4_WEIGHTS,))
    (eight,) = plan_variants((), (Format.COREML,), (Precision.INT8_WEIGHTS,))
    assert (four.deployment_target, eight.deployment_target) == ("iOS18", "iOS17")


def test_profiles_share_artifacts() -> None:
    profiles = [load_profile(n) for n in ("raspberry-pi-4b", "android-arm64", "iphone-15")]
    variants = plan_variants(profiles, (), ())
    shared = next(v for v in variants if v.format is Format.TFLITE and v.precision is Precision.INT8)
    assert shared.profiles == ("raspberry-pi-4b", "android-arm64")
    assert len({(v.format, v.precision) for v in variants}) == len(variants)
    assert strictest(shared, profiles).size_bytes == 33_554_432
    assert {v.deployment_target for v in variants} == {"iOS17"}


def test_options_narrow_profiles_and_never_to_nothing() -> None:
    phone = [load_profile("iphone-15")]
    assert [v.file_name("net") for v in plan_variants(phone, (), (Precision.FP16,))] == ["net-fp16.mlpackage"]
    with pytest.raises(DataError, match="No artifact is left"):
        plan_variants(phone, (Format.ONNX,), ())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("nets/kws.onnx", "kws"),
        ("nets/kws/model.onnx", "kws"),
        ("zoo.py:digits", "digits"),
        ("pkg.zoo:digits", "digits"),
        ("a b/my net.pt2", "my-net"),
        ("...", "model"),
    ],
)
def test_model_name(source: str, name: str) -> None:
    assert model_name(source) == name
