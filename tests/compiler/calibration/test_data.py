"""Calibration data: every accepted form, every refusal with expected against found, warnings with evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.data import load_dataset
from compiler.errors import DataError
from runtimes.session import Array, TensorSpec

ONE = (TensorSpec("x", "float32", (1, 3)),)
TWO = (TensorSpec("x", "float32", (1, 3)), TensorSpec("ids", "int32", (1, 2)))


def samples(count: int = 40) -> Array:
    return np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)


def test_npz_named_as_the_inputs_with_labels(tmp_path: Path) -> None:
    x, ids = samples(), np.arange(80, dtype=np.int32).reshape(40, 2)
    np.savez(tmp_path / "d.npz", x=x, ids=ids, labels=np.arange(40), extra=np.zeros(1))
    data = load_dataset(str(tmp_path / "d.npz"), TWO)
    assert data.count == 40 and data.labels is not None and data.warnings == ()
    np.testing.assert_array_equal(data.feeds["x"], x)
    batches = list(data.batches())
    assert len(batches) == 40 and batches[7]["ids"].tolist() == [[14, 15]]


def test_any_single_other_array_is_the_single_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", pictures=samples(), labels=np.arange(40))
    assert list(load_dataset(str(tmp_path / "d.npz"), ONE).feeds) == ["x"]
    np.savez(tmp_path / "e.npz", pictures=samples(), others=samples())
    with pytest.raises(DataError, match=r"no array for input\(s\) \['x'\]; found \['others', 'pictures'\]"):
        load_dataset(str(tmp_path / "e.npz"), ONE)


def test_folders_of_samples_and_of_inputs(tmp_path: Path) -> None:
    x = samples()
    one_by_one, by_input, parts = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for folder in (one_by_one, by_input, parts):
        folder.mkdir()
    for index, row in enumerate(x):
        np.save(one_by_one / f"{index:03}.npy", row)
    np.save(by_input / "x.npy", x)
    np.savez(parts / "1.npz", x=x[:30])
    np.savez(parts / "2.npz", x=x[30:])
    digests = {load_dataset(str(folder), ONE).digest for folder in (one_by_one, by_input, parts)}
    assert len(digests) == 1


def test_callables_return_mappings_arrays_or_iterables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration_source.py").write_text(
        "import numpy as np\n"
        "X = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)\n"
        "def mapping(): return {'x': X, 'labels': np.arange(40)}\n"
        "def array(): return X\n"
        "def batches(): return ({'x': X[i:i + 10]} for i in range(0, 40, 10))\n"
        "def broken(): raise KeyError('lost')\n"
        "def silly(): return 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    mapping = load_dataset("calibration_source:mapping", ONE)
    assert mapping.labels is not None and mapping.count == 40
    assert (
        load_dataset("calibration_source:array", ONE).digest == load_dataset("calibration_source:batches", ONE).digest
    )
    for name, words in (("broken", "KeyError"), ("silly", "returned int"), ("missing", "cannot be imported")):
        with pytest.raises(DataError, match=words):
            load_dataset(f"calibration_source:{name}", ONE)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((40, 4), np.float32)}, "shape Nx3 .* found 40x4"),
        ({"x": np.zeros(3, np.float32)}, "shape Nx3 .* found 3"),
        ({"x": np.zeros((0, 3), np.float32)}, "holds no samples"),
        ({"x": np.full((40, 3), np.nan, np.float32)}, "NaN or infinity, first in sample 0"),
        ({"x": np.full((40, 3), 1e300)}, "NaN or infinity"),
        ({"x": np.full((40, 3), 2**24 + 1, np.int64)}, "needs float32, found int64"),
        ({"x": np.zeros((40, 3), np.complex64)}, "needs float32, found complex64"),
        ({"x": np.zeros((40, 3), np.float32), "labels": np.zeros(39)}, "40 samples, but 39 labels"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, Array], words: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset(str(tmp_path / "d.npz"), ONE)
    assert caught.value.remedy


def test_float64_and_exact_integers_are_cast_but_integer_inputs_are_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=samples().astype(np.float64))
    assert load_dataset(str(tmp_path / "d.npz"), ONE).feeds["x"].dtype == np.float32
    np.savez(tmp_path / "d.npz", x=np.arange(120, dtype=np.uint8).reshape(40, 3))
    assert load_dataset(str(tmp_path / "d.npz"), ONE).feeds["x"][1, 0] == 3.0
    np.savez(tmp_path / "d.npz", x=samples(), ids=np.zeros((40, 2), np.int64))
    with pytest.raises(DataError, match="'ids' needs int32, found int64"):
        load_dataset(str(tmp_path / "d.npz"), TWO)


def test_unequal_counts_missing_paths_and_damaged_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=samples(), ids=np.zeros((39, 2), np.int32))
    with pytest.raises(DataError, match="different sample counts"):
        load_dataset(str(tmp_path / "d.npz"), TWO)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(str(tmp_path / "none.npz"), ONE)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("cut.npz", "text.npz", "objects.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            load_dataset(str(tmp_path / name), ONE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.npy"):
        load_dataset(str(tmp_path / "empty"), ONE)


def test_doubtful_data_is_said_with_evidence(tmp_path: Path) -> None:
    few = np.concatenate([samples(5), samples(5)])
    np.savez(tmp_path / "d.npz", x=few)
    warnings = load_dataset(str(tmp_path / "d.npz"), ONE).warnings
    assert len(warnings) == 2 and "only 10 samples" in warnings[0] and "5 of 10" in warnings[1]
    np.savez(tmp_path / "d.npz", x=np.full((40, 3), 7, np.float32))
    assert any("same value 7.0" in w for w in load_dataset(str(tmp_path / "d.npz"), ONE).warnings)


def test_the_digest_is_of_content_and_the_last_batch_is_filled() -> None:
    from compiler.calibration.dataset import make_dataset

    spec = (TensorSpec("x", "float32", (4, 3)),)
    data = make_dataset({"x": samples(10)}, spec, where="test")
    batches = [batch["x"] for batch in data.batches()]
    assert [len(b) for b in batches] == [4, 4, 4]
    np.testing.assert_array_equal(batches[2][2:], samples(10)[[9, 9]])
    other = samples(10)
    other[3, 1] += 1
    assert make_dataset({"x": other}, spec, where="test").digest != data.digest
    assert data.take(3).count == 3


def test_pixels_normalised_twice_are_named(tmp_path: Path) -> None:
    image = (TensorSpec("x", "float32", (1, 4, 4, 3)),)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "once.npz", x=pixels / 255)
    np.savez(tmp_path / "twice.npz", x=pixels / 255 / 255)
    assert load_dataset(str(tmp_path / "once.npz"), image).warnings == ()
    assert ["normalising twice" in w for w in load_dataset(str(tmp_path / "twice.npz"), image).warnings] == [True]


def test_classes_without_samples_are_counted(tmp_path: Path) -> None:
    labels = np.arange(40) % 8
    np.savez(tmp_path / "d.npz", x=samples(), labels=np.where(np.isin(labels, (3, 5)), 0, labels))
    assert load_dataset(str(tmp_path / "d.npz"), ONE).warnings == (
        "2 of the classes 0 to 7 have no sample, first class 3",
    )
    np.savez(tmp_path / "e.npz", x=samples(), labels=labels)
    assert load_dataset(str(tmp_path / "e.npz"), ONE).warnings == ()


def test_labels_with_a_background_index_far_away_are_not_counted(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=samples(), labels=np.full(40, 999))
    assert load_dataset(str(tmp_path / "d.npz"), ONE).warnings == ()


def _photographs(side: int = 32) -> Array:
    """[40, 3, side, side]: smooth colour planes that differ from one another."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(size=(40, 3, side // 8, side // 8))
    blurred = np.kron(coarse, np.ones((8, 8)))
    return ((blurred + np.roll(blurred, 3, 2) + np.roll(blurred, 3, 3)) / 3).astype(np.float32)


def _warned(array: Array, shape: tuple[int, ...]) -> list[str]:
    from compiler.calibration.dataset import make_dataset

    return list(make_dataset({"x": array}, (TensorSpec("x", "float32", shape),), where="t").warnings)


def test_pictures_that_were_reshaped_instead_of_transposed_are_named() -> None:
    first, last = _photographs(), np.ascontiguousarray(_photographs().transpose(0, 2, 3, 1))
    assert _warned(first, (1, 3, 32, 32)) == []
    assert _warned(last, (1, 32, 32, 3)) == []
    (found,) = _warned(last.reshape(40, 3, 32, 32), (1, 3, 32, 32))
    assert "reshaped instead of transposed" in found
    (found,) = _warned(first.reshape(40, 32, 32, 3), (1, 32, 32, 3))
    assert "channels-first pictures were reshaped" in found
    assert _warned(np.random.default_rng(0).random((40, 3, 32, 32), np.float32), (1, 3, 32, 32)) == []


def test_the_remedy_for_another_layout_is_the_transposition() -> None:
    with pytest.raises(DataError) as caught:
        _warned(np.zeros((40, 32, 32, 3), np.float32), (1, 3, 32, 32))
    assert "(0, 3, 1, 2)" in caught.value.remedy


def test_a_mean_subtracted_twice_is_named() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)) / 255.0
    once = ((pixels - 0.45) / 0.225).astype(np.float32)
    assert _warned(once, (1, 3, 8, 8)) == []
    (found,) = _warned(((once - 0.45) / 0.225).astype(np.float32), (1, 3, 8, 8))
    assert "subtracting the mean twice" in found
