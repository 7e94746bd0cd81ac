"""Tables of weights: as good as scikit-learn's clusters, within their bits, and unchanged by a second run."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.calibration.dataset import make_dataset
from compiler.hubfacts import hub_inputs
from compiler.quantization.palettes import Palette, grouped, k_means, nearest, palettized, sparsified, ungrouped
from compiler.quantization.plan import Compression, QuantizeOptions
from compiler.quantization.schemes import quantize_as
from compiler.quantization.schemes.rounded import noise
from compiler.quantization.spec import NodePrecision
from profiles.schema import Precision
from runtimes.session import Array
from tests.compiler.exporters.coreml.support import hub, parse

WEIGHTS = hnp.arrays(np.float32, (8, 3, 5), elements=st.floats(-4, 4, width=32))


@pytest.mark.parametrize("entries", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("shape", ["normal", "laplace", "two-humps"])
def test_tables_are_as_good_as_scikit_learns(shape: str, entries: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(7)
    draws = {
        "normal": rng.standard_normal(3000),
        "laplace": rng.laplace(size=3000),
        "two-humps": np.concatenate([rng.normal(-1, 0.1, 1500), rng.normal(1, 0.1, 1500)]),
    }
    values = draws[shape].astype(np.float32)
    theirs = cluster.KMeans(entries, n_init=3, random_state=0).fit(values.reshape(-1, 1)).inertia_
    table = k_means(values, entries)
    ours = float(((nearest(values, table).astype(np.float64) - values) ** 2).sum())
    assert len(table) <= entries
    assert ours < 1.02 * theirs


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 8]), st.booleans())
def test_few_values_per_group_and_a_second_run_changes_nothing(
    weight: Array, bits: int, groups: int, sparse: bool
) -> None:
    palette = Palette(bits, 0 if groups > 1 else None, groups, sparse)
    once = palettized(weight, palette)
    for row in grouped(once, palette):
        kept = row[row != 0] if sparse else row
        assert len(np.unique(kept)) <= 1 << bits
    assert np.array_equal(palettized(once, palette), once)
    if sparse:
        assert np.all(once[weight == 0] == 0)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.sampled_from([(None, 1), (0, 4), (0, 8), (2, 5), (1, 3)]))
def test_groups_come_apart_and_together_again(weight: Array, how: tuple[int | None, int]) -> None:
    palette = Palette(4, *how)
    assert np.array_equal(ungrouped(grouped(weight, palette), weight.shape, palette), weight)


def test_a_group_is_a_run_of_channels() -> None:
    weight = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    rows = grouped(weight, Palette(4, 1, 2))
    assert set(rows[0]) == set(weight[:, :2].ravel())


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.floats(0, 0.99))
def test_the_smallest_go_and_the_others_stay(weight: Array, share: float) -> None:
    thin = sparsified(weight, share)
    gone = (thin == 0) & (weight != 0)
    assert gone.sum() <= int(share * weight.size) <= (thin == 0).sum()
    assert np.array_equal(thin[~gone], weight[~gone])
    if gone.any() and (thin != 0).any():
        assert np.abs(weight[gone]).max() <= np.abs(thin[thin != 0]).min()


@pytest.fixture(scope="module")
def net() -> ir.Model:
    rng = np.random.default_rng(0)
    text = "net (float[1, 20] x) => (float[1, 6] y) { a = MatMul (x, w) \n r = Relu (a) \n y = MatMul (r, small) }"
    w, small = rng.standard_normal((20, 34)).astype(np.float32), rng.standard_normal((34, 6)).astype(np.float32)
    return hub(parse(text, w=w, small=small))


def test_reasons_and_provenance_are_written_down(net: ir.Model) -> None:
    """204 weights are below the threshold of all weight schemes, 680 too few for a table of 256."""
    made = quantize_as(net, None, Precision.PALETTIZED4, QuantizeOptions(compression=Compression(palette_group=16)))
    first, last = (made.spec.nodes[str(n.name)] for n in made.model.graph if n.op_type == "MatMul")
    assert first.precision is NodePrecision.WEIGHTS and first.reason.startswith("2 table(s) of 16: ")
    assert last.precision is NodePrecision.FLOAT32
    assert made.spec.provenance["palette_group"] == 16
    eight = quantize_as(net, None, Precision.PALETTIZED8).spec
    assert {d.reason for d in eight.nodes.values()} >= {"680 weights are too few for a table of 256"}


def test_channels_of_few_weights_keep_more() -> None:
    """Depthwise: nine weights per channel lose none to sparsity and take six bits at least."""
    rng = np.random.default_rng(0)
    text = "net (float[1, 64, 8, 8] x) => (float[1, 64, 6, 6] y) { y = Conv <group = 64> (x, w) }"
    model = hub(parse(text, w=rng.standard_normal((64, 1, 3, 3)).astype(np.float32)))

    def reason(precision: Precision) -> str:
        return next(iter(quantize_as(model, None, precision).spec.nodes.values())).reason

    assert reason(Precision.SPARSE) == "9 weights per channel are too few to lose any"
    assert reason(Precision.PALETTIZED2).startswith("1 table(s) of 64: ")
    assert reason(Precision.SPARSE_PALETTIZED4).startswith("1 table(s) of 64: ")


def test_the_source_model_is_left_alone(net: ir.Model) -> None:
    before = net.graph.initializers["w"].const_value
    assert before is not None
    quantize_as(net, None, Precision.SPARSE)
    assert net.graph.initializers["w"].const_value is before and not net.metadata_props


COMPENSATED = [Precision.SPARSE, Precision.PALETTIZED3, Precision.SPARSE_PALETTIZED4, Precision.SPARSE_INT8]


@pytest.mark.parametrize("precision", COMPENSATED, ids=str)
def test_data_makes_up_for_errors(precision: Precision) -> None:
    """Inputs that hang together, as real ones do: what one weight loses, its neighbours carry."""
    rng = np.random.default_rng(4)
    text = """
    net (float[1, 24] x) => (float[1, 8] y) { a = MatMul (x, w) \n r = Relu (a) \n y = Gemm <transB = 1> (r, v) }
    """
    w, v = rng.standard_normal((24, 40)).astype(np.float32), rng.standard_normal((8, 40)).astype(np.float32)
    model = hub(parse(text, w=w, v=v))
    mixing = rng.standard_normal((6, 24))
    x = (rng.standard_normal((96, 6)) @ mixing + 0.1 * rng.standard_normal((96, 24))).astype(np.float32)
    data = make_dataset({"x": x[:64]}, hub_inputs(model), where="here")
    unseen = make_dataset({"x": x[64:]}, hub_inputs(model), where="here")
    options = QuantizeOptions(compression=Compression(palette_group=8))
    blind, seeing = (quantize_as(model, given, precision, options) for given in (None, data))
    before, after = (noise(model, made.model, unseen) for made in (blind, seeing))
    assert after < 0.7 * before
    assert "by second order" in " ".join(seeing.spec.notes)
    for name in ("w", "v"):  # as few values and as many zeros as without data
        few = [_initializer(made.model, name) for made in (blind, seeing)]
        assert (few[1] == 0).mean() >= (few[0] == 0).mean() - 0.01
        if precision.palette_bits:
            assert len(np.unique(few[1])) <= len(np.unique(few[0]))


def _initializer(model: ir.Model, name: str) -> Array:
    value = next(v for n, v in model.graph.initializers.items() if n in (name, f"{name}/quantized"))
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
