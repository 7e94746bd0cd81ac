from __future__ import annotations

from pathlib import Path

import pytest

from profiles.catalog import DEVICES, load_profile, profile_names
from profiles.errors import EdgewrightError, ExitCode, ProfileError, RegistryMiss
from profiles.registry import Registry
from profiles.units import format_bytes, format_ms


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_follows_the_schema(name: str) -> None:
    assert load_profile(name).name == name


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ProfileError, match="Did you mean 'raspberry-pi-4b'") as caught:
        load_profile("raspberry-pi-4")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "android-arm64" in caught.value.remedy


def _edited(tmp_path: Path, old: str, new: str, name: str = "board.toml") -> str:
    text = (DEVICES / "android-arm64.toml").read_text("utf-8").replace("android-arm64", Path(name).stem)
    assert old in text
    path = tmp_path / name
    path.write_text(text.replace(old, new, 1), "utf-8")
    return str(path)


def test_a_new_device_is_one_toml_file(tmp_path: Path) -> None:
    assert load_profile(_edited(tmp_path, "cores = 8", "cores = 2")).hardware.cores == 2


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("cores = 8", "cores = 0", "hardware.cores"),
        ('format = "tflite"', 'format = "gguf"', "targets.0.format"),
        ("size_bytes", "size_byte", "budgets.size_byte"),
        ('precisions = ["int8", "fp16", "fp32"]', "precisions = []", "targets.0.precisions"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, place: str) -> None:
    with pytest.raises(ProfileError, match=place):
        load_profile(_edited(tmp_path, old, new))


def test_broken_toml_and_wrong_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="not TOML"):
        load_profile(_edited(tmp_path, "[hardware]", "[hardware"))
    with pytest.raises(ProfileError, match="calls itself"):
        load_profile(_edited(tmp_path, 'name = "other"', 'name = "another"', "other.toml"))


def test_registry_refuses_a_second_claim_and_explains_a_miss() -> None:
    registry: Registry[int] = Registry("number", how_to_add="Count further.")
    registry.add("one", 1)
    registry.add_lazy("infinity", "math", "inf")
    assert registry.get("infinity") == float("inf")
    assert registry.names() == ["infinity", "one"]
    with pytest.raises(ValueError, match="twice"):
        registry.add("one", 2)
    with pytest.raises(RegistryMiss, match="Did you mean 'one'") as caught:
        registry.get("onne")
    assert caught.value.remedy == "Count further."


def test_errors_survive_a_process_boundary() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ProfileError("what", remedy="do")))
    assert isinstance(error, EdgewrightError)
    assert (error.message, error.remedy, error.exit_code) == ("what", "do", ExitCode.USAGE)


def test_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3072.0 GiB",
    ]
    assert format_ms(1_234_567) == "1.23 ms"
