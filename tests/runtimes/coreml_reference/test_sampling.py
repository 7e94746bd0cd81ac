"""Sampling, detection, recurrence, control flow and rearrangement against PyTorch and torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference.session import open_package
from runtimes.errors import InferenceFailed
from tests.runtimes.coreml_reference.test_ops import close, evaluate, values

torch = pytest.importorskip("torch")
F = torch.nn.functional


def _t(array: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize(("padding", "theirs"), [("constant", "zeros"), ("border", "border"), ("folded", "reflection")])
def test_resample(padding: str, theirs: str, sampling: str, align: bool) -> None:
    """PyTorch reflects at the centres of the edge pixels where corners are aligned (MIL: reflection), else at their edges."""
    x = values(2, 3, 5, 7)
    coordinates = np.random.default_rng(1).uniform(-1.6, 1.6, (2, 4, 6, 2)).astype(np.float32)
    mode = ("reflection" if align else "symmetric") if padding == "folded" else padding
    ours = evaluate(
        "resample", x=x, coordinates=coordinates, sampling_mode=sampling, padding_mode=mode, padding_value=np.float32(0),
        coordinates_mode="normalized_minus_one_to_one", align_corners=align,
    )  # fmt: skip
    close(ours, F.grid_sample(_t(x), _t(coordinates), mode=sampling, padding_mode=theirs, align_corners=align))


def test_resample_in_pixels_with_a_value_beyond() -> None:
    x = np.float32([[[[1, 2], [3, 4]]]])
    at = np.float32([[[[0, 0], [1, 1], [0.5, 0.5], [-1, 0], [1, 2]]]])
    how = {
        "sampling_mode": "bilinear",
        "padding_mode": "constant",
        "coordinates_mode": "unnormalized",
        "align_corners": True,
    }
    found = evaluate("resample", x=x, coordinates=at, padding_value=np.float32(9), **how)
    assert found.ravel().tolist() == [1, 4, 2.5, 9, 9]


def test_affine() -> None:
    x, matrix = values(2, 3, 6, 5), values(2, 6, seed=3) * np.float32(0.6)
    ours = evaluate(
        "affine", x=x, transform_matrix=matrix, output_height=4, output_width=7, sampling_mode="bilinear",
        padding_mode="constant", padding_value=np.float32(0), coordinates_mode="normalized_minus_one_to_one", align_corners=True,
    )  # fmt: skip
    grid = F.affine_grid(_t(matrix.reshape(2, 2, 3)), (2, 3, 4, 7), align_corners=True)
    close(ours, F.grid_sample(_t(x), grid, align_corners=True))


BOXES = np.float32([[0, 0, 0, 6, 5], [1, 1.5, 0.5, 4.5, 6.5], [0, 2, 2, 2.5, 2.5]])  # image, x1, y1, x2, y2


@pytest.mark.parametrize("new", [True, False], ids=["boxes", "roi"])
def test_crop_resize_is_roi_align(new: bool) -> None:
    """One sample per bin in the middle of a box, which is at least one pixel wide: ONNX's RoiAlign."""
    x = values(2, 3, 9, 8)
    how = {
        "target_height": 3, "target_width": 4, "sampling_mode": "OFFSET_CORNERS", "spatial_scale": np.float32(0.5),
        "box_coordinate_mode": "CORNERS_WIDTH_FIRST", "normalized_coordinates": False,
    }  # fmt: skip
    node = (
        "y = RoiAlign <output_height = 3, output_width = 4, sampling_ratio = 1, spatial_scale = 0.5, "
        'coordinate_transformation_mode = "output_half_pixel"> (x, rois, images)'
    )
    theirs = _onnx("float[2, 3, 9, 8] x, float[3, 4] rois, int64[3] images", "float[3, 3, 3, 4] y", node,
                   x=x, rois=BOXES[:, 1:], images=BOXES[:, 0].astype(np.int64))  # fmt: skip
    if new:
        ours = evaluate("crop_resize", x=x, boxes=BOXES[:, 1:], box_indices=BOXES[:, 0].astype(np.int32), **how)
    else:
        ours = evaluate("crop_resize", x=x, roi=BOXES.reshape(3, 1, 5, 1, 1), **how)[:, 0]
    close(ours, _t(theirs))


def test_crop_resize_of_the_whole_picture_resizes_it() -> None:
    x = values(2, 3, 9, 8)
    how = {
        "target_height": 5,
        "target_width": 6,
        "sampling_mode": "STRICT_ALIGN_CORNERS",
        "normalized_coordinates": True,
    }
    ours = evaluate("crop_resize", x=x, roi=np.float32([0.5, 0.5, 1, 1]).reshape(1, 1, 4, 1, 1),
                    box_coordinate_mode="CENTER_SIZE_HEIGHT_FIRST", **how)  # fmt: skip
    close(ours[0], F.interpolate(_t(x), (5, 6), mode="bilinear", align_corners=True))


@pytest.mark.parametrize(("mode", "align"), [("STRICT_ALIGN_CORNERS", True), ("UNALIGN_CORNERS", False)])
def test_resize_to_a_shape(mode: str, align: bool) -> None:
    x = values(1, 2, 5, 6)
    ours = evaluate("resize", x=x, shape=np.int32([1, 9, 4]), resized_dims=np.uint32(2), sampling_mode=mode)
    close(ours, F.interpolate(_t(x), (9, 4), mode="bilinear", align_corners=align))
    kept = evaluate("resize", x=x, shape=np.int32([0, 12]), resized_dims=2, interpolation_mode="NEAREST_NEIGHBOR")
    close(kept, F.interpolate(_t(x), (5, 12), mode="nearest"))


def _onnx(inputs: str, outputs: str, node: str, **feeds: Any) -> Any:
    """One ONNX node in onnxruntime."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    text = f'<ir_version: 10, opset_import: ["": 21]> net ({inputs}) => ({outputs}) {{ {node} }}'
    session = ort.InferenceSession(
        onnx.parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: np.asarray(value) for name, value in feeds.items()})[0]


def _survivors(boxes: Any, scores: Any, per_class: bool) -> list[int]:
    """What ONNX's NonMaxSuppression keeps, by descending score; with classes, each box in that of its best score."""
    best, label = scores[0].max(1), scores[0].argmax(1)
    rows = np.where(label == np.arange(3)[:, None], best, -1) if per_class else best[None]
    found = _onnx(
        "float[1, 40, 4] boxes, float[1, K, 40] scores, int64 most, float overlap, float least", "int64[N, 3] kept",
        "kept = NonMaxSuppression <center_point_box = 1> (boxes, scores, most, overlap, least)",
        boxes=boxes, scores=rows[None].astype(np.float32), most=np.int64(40), overlap=np.float32(0.3), least=np.float32(0),
    )  # fmt: skip
    return sorted(found[:, 2].tolist(), key=lambda i: -best[i])


def test_reverse_sequence() -> None:
    x = np.arange(24).reshape(2, 4, 3)
    ours = evaluate("reverse_sequence", x=x, lengths=np.int32([3, 1]), seq_axis=np.int32(1), batch_axis=np.int32(0))
    onnx = _onnx("int64[2, 4, 3] x, int64[2] n", "int64[2, 4, 3] y", "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n)",
                 x=x, n=np.int64([3, 1]))  # fmt: skip
    assert np.array_equal(ours, onnx)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("new", [True, False], ids=["ios17", "ios15"])
def test_non_maximum_suppression(per_class: bool, new: bool) -> None:
    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(0, 6, (1, 40, 2)), rng.uniform(1, 4, (1, 40, 2))
    boxes, scores = np.concatenate([centres, sizes], 2).astype(np.float32), rng.random((1, 40, 3)).astype(np.float32)
    want = _survivors(boxes, scores, per_class)
    how = {"iou_threshold": np.float32(0.3), "max_boxes": np.int32(30), "per_class_suppression": per_class}
    if new:
        kept = evaluate(
            "non_maximum_suppression", boxes=boxes.transpose(0, 2, 1), scores=scores.transpose(0, 2, 1), **how
        )
    else:
        kept = evaluate("non_maximum_suppression", boxes=boxes, scores=scores, score_threshold=np.float32(0), **how)
        assert kept[3].tolist() == [len(want)]
    assert kept[2][0, : len(want)].tolist() == want and set(kept[2][0, len(want) :].tolist()) <= {-1}
    found = kept[0].transpose(0, 2, 1) if new else kept[0]
    assert np.array_equal(found[0, : len(want)], boxes[0, want])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn(activation: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.RNN(3, 5, nonlinearity=activation)
    x, h = values(7, 2, 3), values(2, 5, seed=1)
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    ours = evaluate(
        "rnn", x=x, initial_h=h, weight_ih=weights["weight_ih_l0"], weight_hh=weights["weight_hh_l0"],
        bias=weights["bias_ih_l0"] + weights["bias_hh_l0"], output_sequence=True, activation=activation,
    )  # fmt: skip
    sequence, last = net(_t(x), _t(h)[None])
    close(ours[0], sequence.detach())
    close(ours[1], last[0].detach())


def test_reshape_like_follows_the_documentations_example() -> None:
    x = values(36, 5).reshape(-1)
    how = {
        "begins": (np.array(0), np.array(1)),
        "ends": (np.array(2), np.array(0)),
        "end_masks": (np.array(False), np.array(True)),
    }
    shaped = evaluate("reshape_like", x=x, ref_tensors=(values(2, 3, 4), values(1, 5, 6)), **how)
    assert shaped.shape == (2, 3, 5, 6) and np.array_equal(shaped.ravel(), x)


# --- control flow, written by coremltools


def _package(body: Any, folder: Path) -> Path:
    """A program of two inputs x [3] and n [1], saved as coremltools saves it."""
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder as mb

    program = mb.program(input_specs=[mb.TensorSpec(shape=(3,)), mb.TensorSpec(shape=(1,))])(body)
    path = folder / "control.mlpackage"
    ct.convert(
        program, convert_to="mlprogram", skip_model_load=True, compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
    ).save(str(path))  # fmt: skip
    return path


def _run(path: Path, n: float) -> Any:
    with open_package(path) as session:
        x = {session.inputs[0].name: np.float32([1, 2, 3]), session.inputs[1].name: np.float32([n])}
        return next(iter(session.run(x).values()))


def test_a_branch_is_taken_by_its_condition(tmp_path: Path) -> None:
    def body(x: Any, n: Any) -> Any:
        from coremltools.converters.mil import Builder as mb

        positive = mb.squeeze(x=mb.greater(x=n, y=0.0), axes=[0])
        outside = mb.mul(x=x, y=10.0)
        return mb.cond(
            pred=positive, _true_fn=lambda: mb.add(x=outside, y=1.0), _false_fn=lambda: mb.sub(x=outside, y=n)
        )

    path = _package(body, tmp_path)
    assert _run(path, 5).tolist() == [11, 21, 31]
    assert _run(path, -5).tolist() == [15, 25, 35]


def test_a_loop_runs_until_its_condition_is_false(tmp_path: Path) -> None:
    def body(x: Any, n: Any) -> Any:
        from coremltools.converters.mil import Builder as mb

        def goes_on(left: Any, total: Any) -> Any:
            return mb.squeeze(x=mb.greater(x=left, y=0.0), axes=[0])

        def step(left: Any, total: Any) -> Any:
            return mb.sub(x=left, y=1.0), mb.mul(x=mb.add(x=total, y=x), y=2.0)

        return mb.while_loop(_cond=goes_on, _body=step, loop_vars=(n, x))[1]

    path = _package(body, tmp_path)
    for n in (0, 1, 4):
        expected = np.float32([1, 2, 3])
        for _ in range(n):
            expected = (expected + np.float32([1, 2, 3])) * 2
        assert _run(path, n).tolist() == expected.tolist()


def test_a_loop_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtimes.coreml_reference.control as control

    def body(x: Any, n: Any) -> Any:
        from coremltools.converters.mil import Builder as mb

        def goes_on(left: Any) -> Any:
            return mb.squeeze(x=mb.greater(x=left, y=-1.0), axes=[0])

        return mb.while_loop(_cond=goes_on, _body=lambda left: mb.abs(x=left), loop_vars=(n,))

    monkeypatch.setattr(control, "MAX_ITERATIONS", 50)
    with pytest.raises(InferenceFailed, match="still runs after 50 iterations"):
        _run(_package(body, tmp_path), 3)
