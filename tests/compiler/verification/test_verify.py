"""Verification on more samples than memory should hold: the same outputs, read piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.samples import Spool
from compiler.draft import drift_baseline
from compiler.hub_session import open_hub
from compiler.verification import verify
from compiler.verification.verify import Truth, verify_artifact
from runtimes.session import SampleKey, run_dataset
from tests.compiler.hub_models import hub

NET = """
net (float[BATCH, 6] x) => (float[BATCH, 3] y) {
  y = MatMul (x, w)
}
"""


class Counted:
    """Samples that know how many of them were read at once."""

    def __init__(self, array: np.ndarray) -> None:
        spool = Spool(limit_bytes=0)
        spool.append(array)
        self._stored = spool.samples()
        self.dtype, self.shape, self.ndim, self.most = array.dtype, array.shape, array.ndim, 0

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, key: SampleKey) -> np.ndarray:
        found = self._stored[key]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("batch", [1, 4])
def test_samples_on_disk_are_read_in_pieces_and_give_the_same(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    model = hub(NET.replace("BATCH", str(batch)), w=rng.standard_normal((6, 3)).astype(np.float32))
    path = tmp_path / "net.onnx"
    ir.save(model, path)
    rows = rng.standard_normal((50, 6)).astype(np.float32)
    with open_hub(model) as session:
        outputs = run_dataset(session, {"x": rows})
    whole = verify_artifact(path, None, Truth({"x": rows}, outputs, None, batch))
    monkeypatch.setattr(verify, "AT_ONCE_BYTES", 10 * 6 * 4)
    stored = Counted(rows)
    pieces = verify_artifact(path, None, Truth({"x": stored}, outputs, None, batch))
    assert stored.most <= 10
    np.testing.assert_array_equal(pieces.execution.outputs["y"], whole.execution.outputs["y"])
    assert pieces.parity == whole.parity


def test_the_drift_baseline_reads_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((700, 6)).astype(np.float32)
    outputs = {"y": rows[:, :3]}
    stored = Counted(rows)
    found = drift_baseline(Truth({"x": stored}, outputs, None), {"y": "logits"})
    assert stored.most < 700
    assert found == drift_baseline(Truth({"x": rows}, outputs, None), {"y": "logits"})
