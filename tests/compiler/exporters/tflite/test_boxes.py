"""NonMaxSuppression in LiteRT against onnxruntime: as many rows as are left, in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from compiler.errors import UnsupportedModel
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from tests.compiler.exporters.tflite import support

pytest.importorskip("ai_edge_litert")

BATCH, CLASSES, BOXES = 2, 3, 40
TEXT = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2, 40, 4] boxes, float[2, 3, 40] scores) => (int64[N, 3] kept)
  <int64 most = {MOST}, float overlap = {OVERLAP}, float least = {LEAST}> {
  [nms] kept = NonMaxSuppression <center_point_box = CENTRE> (boxes, scores, most, overlap, least)
}
"""


def _text(most: int = 7, overlap: float = 0.4, least: float = 0.2, centre: int = 0) -> str:
    numbers = {"MOST": most, "OVERLAP": overlap, "LEAST": least, "CENTRE": centre}
    text = TEXT
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    return text


def _both(text: str, tmp_path: Path, feeds: dict[str, support.Array]) -> tuple[support.Array, support.Array]:
    path = tmp_path / "m.tflite"
    support.export(to_hub(onnx.parser.parse_model(text), ImportOptions(batch=1)), path)
    return support.run(path, feeds)["kept"], support.reference(onnx.parser.parse_model(text), feeds)["kept"]


def _feeds(seed: int, centre: bool = False) -> dict[str, support.Array]:
    rng = np.random.default_rng(seed)
    middle, size = rng.uniform(0, 3, (BATCH, BOXES, 2)), rng.uniform(0.3, 1.5, (BATCH, BOXES, 2))
    parts = [middle, size] if centre else [middle - size / 2, middle + size / 2]
    scores = rng.uniform(0, 1, (BATCH, CLASSES, BOXES))
    return {"boxes": np.concatenate(parts, -1).astype(np.float32), "scores": scores.astype(np.float32)}


@pytest.mark.parametrize("centre", [0, 1])
@pytest.mark.parametrize("most", [1, 7, 100])
def test_the_same_boxes_in_the_same_order(tmp_path: Path, most: int, centre: int) -> None:
    for seed in range(2):
        got, want = _both(_text(most=most, centre=centre), tmp_path, _feeds(seed, bool(centre)))
        assert got.dtype == want.dtype and len(want) > 0
        np.testing.assert_array_equal(got, want)


def test_nothing_may_be_left(tmp_path: Path) -> None:
    got, want = _both(_text(least=2.0), tmp_path, _feeds(0))
    assert got.shape == want.shape == (0, 3)


def test_an_overlap_of_the_bound_itself_and_a_score_of_the_bound_itself(tmp_path: Path) -> None:
    """Boxes of 1 and of a half inside it, an overlap of exactly a half; scores at the least score."""
    boxes = np.zeros((BATCH, BOXES, 4), np.float32)
    boxes[:, :, 2:] = [1, 0.5]
    boxes[:, 0, 2:] = 1
    scores = np.full((BATCH, CLASSES, BOXES), 0.25, np.float32)
    scores[:, :, :2] = [0.75, 0.5]
    for least in (0.25, 0.2):
        got, want = _both(_text(overlap=0.5, least=least), tmp_path, {"boxes": boxes, "scores": scores})
        np.testing.assert_array_equal(got, want)


def test_what_reads_the_boxes_left_is_refused(tmp_path: Path) -> None:
    text = _text().replace("kept = NonMax", "rows = NonMax").replace("least)\n", "least)\n [neg] kept = Neg (rows)\n")
    with pytest.raises(UnsupportedModel, match="depends on data") as caught:
        support.export(to_hub(onnx.parser.parse_model(text), ImportOptions(batch=1)), tmp_path / "m.tflite")
    assert caught.value.refusals[0].node == "nms" and caught.value.refusals[0].remedy


@pytest.mark.parametrize("kind", ["float", "bool", "int64"])
def test_places_that_are_not_zero(tmp_path: Path, kind: str) -> None:
    text = (
        f'<ir_version: 10, opset_import: ["": 21]> g ({kind}[3, 4] x) => (int64[2, N] y) {{ [find] y = NonZero (x) }}'
    )
    path = tmp_path / "m.tflite"
    support.export(to_hub(onnx.parser.parse_model(text), ImportOptions(batch=1)), path)
    for x in (np.eye(3, 4), np.zeros((3, 4)), np.asarray([[0, -1, 0, 2], [0, 0, 0, 0], [-0.0, 1, 1, 0]])):
        feeds = {"x": x.astype({"float": np.float32, "bool": np.bool_, "int64": np.int64}[kind])}
        want = support.reference(onnx.parser.parse_model(text), feeds)["y"]
        np.testing.assert_array_equal(support.run(path, feeds)["y"], want)
