"""Whole networks: packages made by Apple's converter against PyTorch, and one published by its authors against its ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference.session import open_package
from runtimes.session import Array


def _nets() -> dict[str, tuple[Any, tuple[int, ...]]]:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)

    class Cnn(nn.Module):  # type: ignore[misc, name-defined]
        """Strided stem, residual depthwise block with squeeze and excitation, ceil-mode pooling, head."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
            self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, 1, 2, groups=16), nn.SiLU())
            self.squeeze = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid()
            )
            self.pool, self.grouped = nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(16, 24, 3, dilation=2, groups=2)
            self.up, self.head = nn.ConvTranspose2d(24, 8, 3, 2, 1, 1), nn.Linear(8, 10)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            y = self.depthwise(x)
            x = self.pool(x + y * self.squeeze(y))
            x = nn.functional.interpolate(
                self.up(self.grouped(x)), scale_factor=2, mode="bilinear", align_corners=False
            )
            return torch.softmax(self.head(x.mean((2, 3))), -1)

    class Transformer(nn.Module):  # type: ignore[misc, name-defined]
        """Pre-norm attention over four heads, then a GELU feed-forward, both with residuals."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
            self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x: Any) -> Any:
            q, k, v = (t.reshape(1, 7, 4, 8).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
            mixed = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1) @ v
            x = x + self.out(mixed.transpose(1, 2).reshape(1, 7, 32))
            return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))

    class Recurrent(nn.Module):  # type: ignore[misc, name-defined]
        """Two layers of a bidirectional LSTM, a head on the last step."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(12, 16, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(32, 6)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    return {
        "cnn": (Cnn().eval(), (1, 3, 33, 32)),
        "transformer": (Transformer().eval(), (1, 7, 32)),
        "lstm": (Recurrent().eval(), (1, 9, 12)),
    }


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Array, Array]]:
    """{net-precision: (package, x, PyTorch's y)}; one conversion each, all six in about ten seconds."""
    ct, torch = pytest.importorskip("coremltools"), pytest.importorskip("torch")
    made: dict[str, tuple[Path, Array, Array]] = {}
    for name, (net, shape) in _nets().items():
        x = torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
        with torch.no_grad():
            traced, y = torch.jit.trace(net, x, check_trace=False), net(x).numpy()
        for precision in ("FLOAT32", "FLOAT16"):
            path = tmp_path_factory.mktemp("converted") / f"{name}-{precision}.mlpackage"
            ct.convert(
                traced, inputs=[ct.TensorType("x", shape, dtype=np.float32)], outputs=[ct.TensorType("y", dtype=np.float32)],
                convert_to="mlprogram", skip_model_load=True, compute_precision=ct.precision[precision],
                minimum_deployment_target=ct.target.iOS16,
            ).save(str(path))  # fmt: skip
            made[f"{name}-{precision}"] = (path, x.numpy(), y)
    return made


# float16 keeps 11 bits: one rounding is 2^-11; a dozen layers compound to a few of them relative to the largest output.
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("FLOAT32", 2e-6), ("FLOAT16", 4e-3)])
@pytest.mark.parametrize("net", ["cnn", "transformer", "lstm"])
def test_a_converted_network_agrees_with_pytorch(
    converted: dict[str, tuple[Path, Array, Array]], net: str, precision: str, tolerance: float
) -> None:
    path, x, expected = converted[f"{net}-{precision}"]
    with open_package(path) as session:
        y = session.run({"x": x})["y"]
    error = float(np.abs(y - expected).max() / np.abs(expected).max())
    print(f"{net} {precision}: {error:.2e} of the largest output")
    assert error < tolerance
    if precision == "FLOAT16":
        assert error > 1e-6  # float16 rounding must show, or it is not emulated


@pytest.mark.slow
@pytest.mark.parametrize("config", ["linear", "palettized", "sparse"])
def test_compressed_weights_decode_as_coremltools_decodes_them(
    converted: dict[str, tuple[Path, Array, Array]], config: str, tmp_path: Path
) -> None:
    ct = pytest.importorskip("coremltools")
    cto = ct.optimize.coreml
    path, x, expected = converted["transformer-FLOAT32"]
    model = ct.models.MLModel(str(path), skip_model_load=True)
    compress, op_config = {
        "linear": (cto.linear_quantize_weights, cto.OpLinearQuantizerConfig(weight_threshold=64)),
        "palettized": (cto.palettize_weights, cto.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=64)),
        "sparse": (cto.prune_weights, cto.OpMagnitudePrunerConfig(target_sparsity=0.3, weight_threshold=64)),
    }[config]
    small = compress(model, cto.OptimizationConfig(global_config=op_config))
    small.save(str(tmp_path / "small.mlpackage"))
    plain = cto.decompress_weights(small)
    plain.save(str(tmp_path / "plain.mlpackage"))
    with open_package(tmp_path / "small.mlpackage") as ours, open_package(tmp_path / "plain.mlpackage") as theirs:
        compressed, decompressed = ours.run({"x": x})["y"], theirs.run({"x": x})["y"]
    np.testing.assert_allclose(compressed, decompressed, rtol=1e-5, atol=1e-5)
    assert np.abs(compressed - expected).max() > 0  # something was lost, so something was decoded


@pytest.mark.slow
@pytest.mark.parametrize("config", ["grouped", "int8-table", "sparse-palettized", "sparse-int8", "int4-blocks"])
def test_joint_forms_of_coremltools_decode_as_it_decodes_them(config: str, tmp_path: Path) -> None:
    """iOS18's combinations, made by coremltools' own optimizers and undone by its own decompression."""
    ct, torch = pytest.importorskip("coremltools"), pytest.importorskip("torch")
    cto = ct.optimize.coreml
    net, shape = _nets()["transformer"]
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    model = ct.convert(
        torch.jit.trace(net, x, check_trace=False), inputs=[ct.TensorType("x", shape, dtype=np.float32)],
        outputs=[ct.TensorType("y", dtype=np.float32)], convert_to="mlprogram", skip_model_load=True,
        compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS18,
    )  # fmt: skip

    def palettize(model: Any, joint: bool, granularity: str = "per_tensor") -> Any:
        how = cto.OpPalettizerConfig(
            mode="uniform", nbits=4, weight_threshold=64, granularity=granularity, group_size=8
        )
        return cto.palettize_weights(model, cto.OptimizationConfig(global_config=how), joint_compression=joint)

    def quantize(model: Any, joint: bool, **more: Any) -> Any:
        how = cto.OpLinearQuantizerConfig(weight_threshold=64, **more)
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=how), joint_compression=joint)

    sparsity = cto.OptimizationConfig(
        global_config=cto.OpMagnitudePrunerConfig(target_sparsity=0.4, weight_threshold=64)
    )
    small = {
        "grouped": lambda: palettize(model, False, "per_grouped_channel"),
        "int8-table": lambda: quantize(palettize(model, False), True, granularity="per_tensor"),
        "sparse-palettized": lambda: palettize(cto.prune_weights(model, sparsity), True),
        "sparse-int8": lambda: quantize(cto.prune_weights(model, sparsity), True),
        "int4-blocks": lambda: quantize(model, False, dtype="int4", granularity="per_block", block_size=8),
    }[config]()
    small.save(str(tmp_path / "small.mlpackage"))
    plain = cto.decompress_weights(small)
    plain.save(str(tmp_path / "plain.mlpackage"))
    with open_package(tmp_path / "small.mlpackage") as ours, open_package(tmp_path / "plain.mlpackage") as theirs:
        compressed, decompressed = ours.run({"x": x.numpy()})["y"], theirs.run({"x": x.numpy()})["y"]
    np.testing.assert_allclose(compressed, decompressed, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert np.abs(compressed - net(x).numpy()).max() > 1e-4  # something was lost, so something was decoded


def test_the_authors_package_agrees_with_their_onnx(realdata: Path) -> None:
    """basic_pitch: 471 operations with the audio front end; all three published windows."""
    ort = pytest.importorskip("onnxruntime")
    folder = realdata / "basic_pitch"
    windows = np.load(folder / "windows.npz")["windows"]
    onnx = ort.InferenceSession(str(folder / "nmp.onnx"))
    order = ["StatefulPartitionedCall:0", "StatefulPartitionedCall:2", "StatefulPartitionedCall:1"]
    with open_package(folder / "nmp.mlpackage") as session:
        for window in windows:
            feed = window[None].astype(np.float32)
            expected = dict(zip(order, onnx.run(order, {onnx.get_inputs()[0].name: feed}), strict=True))
            ours = session.run({"input_2": feed})
            pairs = (("Identity", order[0]), ("Identity_1", order[2]), ("Identity_2", order[1]))
            for name, other in pairs:
                assert float(np.abs(ours[name] - expected[other]).max()) < 1e-4
