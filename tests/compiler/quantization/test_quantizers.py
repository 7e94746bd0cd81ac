"""The registry of quantizers: the built-in engine, and Neural Compressor where its extra is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.errors import DataError, ExtraMissing
from compiler.quantization.engine import QUANTIZERS, quantize
from compiler.quantization.plan import QuantizeOptions
from runtimes.session import TensorSpec
from tests.compiler.hub_models import hub

NET = "g (float[1, 6] x) => (float[1, 4] y) { y = Gemm(x, w) }"
WEIGHT = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
INSTALLED = importlib.util.find_spec("neural_compressor") is not None


def data() -> Dataset:
    samples = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    return make_dataset({"x": samples}, (TensorSpec("x", "float32", (1, 6)),), where="test")


def test_the_default_quantizer_is_the_engine() -> None:
    assert QUANTIZERS.get("edgewright") is quantize
    assert QUANTIZERS.names() == ["edgewright", "neural-compressor", "onnxruntime"]


@pytest.mark.parametrize("observer", ("min-max", "percentile", "entropy"))
def test_onnxruntimes_ranges_under_our_rules(observer: str) -> None:
    model = hub(NET, w=WEIGHT)
    theirs = QUANTIZERS.get("onnxruntime")(model, data(), QuantizeOptions(observer=observer))
    ours = quantize(model, data(), QuantizeOptions(observer="min-max"))
    assert theirs.spec.constants == ours.spec.constants
    assert theirs.spec.activations.keys() == ours.spec.activations.keys()
    for name, params in theirs.spec.activations.items():
        mine = ours.spec.activations[name]
        if observer == "min-max":
            assert params == mine
        else:
            assert params.scale[0] <= mine.scale[0] * 1.001
    assert theirs.calibration.observer == f"onnxruntime {observer}"


def test_a_method_that_onnxruntime_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="min-max, percentile, entropy, not moving"):
        QUANTIZERS.get("onnxruntime")(hub(NET, w=WEIGHT), data(), QuantizeOptions(observer="moving"))


@pytest.mark.skipif(INSTALLED, reason="Neural Compressor is installed")
def test_a_missing_extra_is_said_before_any_work() -> None:
    with pytest.raises(ExtraMissing, match="neural-compressor") as caught:
        QUANTIZERS.get("neural-compressor")(hub(NET, w=WEIGHT), data(), QuantizeOptions())
    assert "edgewright[neural-compressor]" in caught.value.remedy


@pytest.mark.skipif(not INSTALLED, reason="the extra neural-compressor is not installed")
def test_neural_compressor_chooses_scales_no_larger_than_max_abs() -> None:
    model = hub(NET, w=WEIGHT)
    theirs = QUANTIZERS.get("neural-compressor")(model, data(), QuantizeOptions()).spec.constants[0].params
    ours = quantize(model, data()).spec.constants[0].params
    assert (theirs.axis, theirs.zero_point) == (ours.axis, 0)
    errors = [float(((p.dequantize(p.quantize(WEIGHT)) - WEIGHT) ** 2).sum()) for p in (theirs, ours)]
    assert errors[0] <= errors[1] * (1 + 1e-5)


IN_ITS_ENVIRONMENT = """
import numpy as np
from tests.compiler.quantization.test_quantizers import WEIGHT, NET, data, hub, QuantizeOptions, QUANTIZERS, quantize
model = hub(NET, w=WEIGHT)
theirs, ours = (one(model, data(), QuantizeOptions()) for one in (QUANTIZERS.get("neural-compressor"), quantize))
errors = []
for made in (theirs, ours):
    params = made.spec.constants[0].params
    errors.append(float(((params.dequantize(params.quantize(WEIGHT)) - WEIGHT) ** 2).sum()))
assert errors[0] <= errors[1] * (1 + 1e-5), errors
assert theirs.spec.activations == ours.spec.activations
assert theirs.spec.provenance["options"]["weights"] == "neural-compressor"
"""


@pytest.mark.slow
def test_neural_compressor_in_an_environment_of_its_own() -> None:
    """EDGEWRIGHT_PEERS_DIR: what ``python -m benchmarks.quantization --peers-dir`` made."""
    python = Path(os.environ.get("EDGEWRIGHT_PEERS_DIR", "/nowhere")) / "inc" / "bin" / "python"
    if not python.is_file():
        pytest.skip("EDGEWRIGHT_PEERS_DIR names no folder with an environment that holds neural-compressor")
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), sysconfig.get_path("purelib")])
    done = subprocess.run(
        [str(python), "-c", IN_ITS_ENVIRONMENT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
