"""Samples on disk: what they give back equals numpy's own indexing, and memory does not grow with their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.calibration.arrays import array_names, read_arrays
from compiler.calibration.data import load_dataset
from compiler.calibration.dataset import make_dataset
from compiler.calibration.samples import Spool, chosen_samples, turned_samples
from compiler.calibration.tables import read_table
from compiler.errors import DataError
from runtimes.session import Array, Samples, TensorSpec

ROWS = np.random.default_rng(0).normal(size=(37, 2, 3, 4)).astype(np.float32)


def spooled(rows: Array, cuts: list[int]) -> Samples:
    spool = Spool(limit_bytes=0)
    for part in np.split(rows, sorted(cuts)):
        spool.append(part)
    return spool.samples()


KEYS = st.one_of(
    st.slices(37),
    st.lists(st.integers(-37, 36), max_size=50),
    st.lists(st.booleans(), min_size=37, max_size=37).map(np.array),
)


@settings(max_examples=80, deadline=None)
@given(KEYS, st.lists(st.integers(0, 37), max_size=4))
def test_samples_on_disk_index_as_arrays_do(key: object, cuts: list[int]) -> None:
    stored = spooled(ROWS, cuts)
    assert not isinstance(stored, np.ndarray)
    assert (len(stored), stored.shape, stored.dtype, stored.ndim) == (37, ROWS.shape, ROWS.dtype, 4)
    picked = key if not isinstance(key, list) else np.array(key, int)
    np.testing.assert_array_equal(stored[key], ROWS[picked])  # type: ignore[index]


def test_chosen_and_turned_samples_read_lazily_and_compose() -> None:
    stored = spooled(ROWS, [5])
    order = [30, 2, 2, 7]
    chosen = chosen_samples(turned_samples(stored, (0, 2, 3, 1)), order)
    assert not isinstance(chosen, np.ndarray)
    np.testing.assert_array_equal(np.asarray(chosen), ROWS[order].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(chosen_samples(chosen, [3, 0])[1:], ROWS[[30]].transpose(0, 2, 3, 1))
    with pytest.raises(IndexError):
        stored[[37]]


def test_arrays_are_read_in_pieces_whatever_the_file(tmp_path: Path) -> None:
    files = {"plain.npz": np.savez, "packed.npz": np.savez_compressed}
    for name, save in files.items():
        save(tmp_path / name, x=ROWS, f=np.asfortranarray(ROWS), none=ROWS[:0])
        pieces = list(read_arrays(tmp_path / name, chunk_bytes=1000))
        assert array_names(tmp_path / name) == ("x", "f", "none")
        assert max(len(rows) for key, rows in pieces if key == "x") == 10
        for key in ("x", "f"):
            np.testing.assert_array_equal(np.concatenate([rows for k, rows in pieces if k == key]), ROWS)
        assert [rows.shape for k, rows in pieces if k == "none"] == [(0, 2, 3, 4)]
    np.save(tmp_path / "x.npy", ROWS)
    np.testing.assert_array_equal(np.concatenate([r for _, r in read_arrays(tmp_path / "x.npy", 1000)]), ROWS)


def test_a_file_that_lies_about_its_length_is_refused_where_it_ends(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="ends 1 bytes early"):
        list(read_arrays(tmp_path / "x.npy", 1000))


def test_a_digest_does_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (TensorSpec("x", "float32", (1, 2, 3, 4)),)
    np.savez(tmp_path / "x.npz", x=ROWS)
    at_once = load_dataset(str(tmp_path / "x.npz"), inputs)
    monkeypatch.setattr("compiler.calibration.arrays.CHUNK_BYTES", 500)
    monkeypatch.setattr("compiler.calibration.samples.IN_MEMORY_BYTES", 0)
    assert load_dataset(str(tmp_path / "x.npz"), inputs).digest == at_once.digest
    assert at_once.digest == make_dataset({"x": ROWS}, inputs, where="t").digest
    assert at_once.select([1, 2]).digest != at_once.select([2, 1]).digest


def test_tables_are_read_in_pieces_whatever_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    inputs = (TensorSpec("x", "float32", (1, 3)),)
    rows = np.random.default_rng(0).normal(size=(900, 3)).astype(np.float32)
    columns = {f"x[{i}]": rows[:, i].tolist() for i in range(3)} | {"label": (np.arange(900) % 7).tolist()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet", row_group_size=250)
    lines = (",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
    (tmp_path / "t.csv").write_text("\n".join([",".join(columns), *lines]))
    monkeypatch.setattr("compiler.calibration.tables.ROWS", 64)
    for name in ("t.parquet", "t.csv"):
        assert max(len(chunk) for key, chunk in read_table(tmp_path / name, inputs).chunks if key == "x") == 64
    monkeypatch.setattr("compiler.calibration.samples.IN_MEMORY_BYTES", 0)
    loaded = [load_dataset(str(tmp_path / name), inputs) for name in ("t.parquet", "t.csv")]
    assert loaded[0].digest == loaded[1].digest and not isinstance(loaded[0].feeds["x"], np.ndarray)
    np.testing.assert_array_equal(loaded[0].feeds["x"][:], rows)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(DataError, match="No space left") as caught:
        Spool(limit_bytes=0).append(ROWS)
    assert "TMPDIR" in caught.value.remedy


SHAPE = (8, 32, 32)
CHILD = """
import os, sys
from pathlib import Path
import onnxruntime
from compiler.calibration import arrays, samples
from compiler.calibration.collect import collect
from compiler.calibration.data import load_dataset
from compiler.hubfacts import hub_inputs
from tests.compiler.hub_models import hub

samples.IN_MEMORY_BYTES = 1 << 20  # buffers that even the small data fills
arrays.CHUNK_BYTES = 1 << 18
model = hub("net (float[1, 8, 32, 32] x) => (float[1, 8, 32, 32] y) { y = Relu (x) }")

def peak():
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))

for size in ("small", "large"):
    os.chdir(sys.argv[1] + "/" + size)
    for spec in ("plain.npz", "packed.npz", "folder", f"{size}_source:make"):
        data = load_dataset(spec, hub_inputs(model))
        collect(model, data, observer="mse")
        judges = data.select(range(0, data.count, 4))
        print(size, spec, data.count, sum(1 for _ in judges.batches()), peak())
"""


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    """Ten times the samples (1.9 and 19 MiB, each in four forms), calibrated in one process: its peak moves by less than 4 MiB."""
    for size, count in (("small", 60), ("large", 600)):
        folder = tmp_path / size
        (folder / "folder").mkdir(parents=True)
        rows = np.random.default_rng(0).integers(0, 99, (count, *SHAPE)).astype(np.float32)
        np.savez(folder / "plain.npz", x=rows)
        np.savez_compressed(folder / "packed.npz", x=rows)
        for index, row in enumerate(rows):
            np.save(folder / "folder" / f"{index:04}.npy", row)
        (folder / f"{size}_source.py").write_text(
            f"import numpy as np\n"
            f"def make():\n"
            f"    for i in range({count}):\n"
            f"        yield np.full((1, *{SHAPE}), i, np.float32)\n"
        )
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(line[2]) for line in lines] == [60] * 4 + [600] * 4
    peaks = [int(line[4]) for line in lines]
    assert peaks[7] < peaks[3] + (4 << 10), done.stdout
