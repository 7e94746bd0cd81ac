"""Any small net, any options: the pruned model is valid, runs, is smaller, and is as large as the plan predicted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.errors import UnsupportedModel
from compiler.pruning import Measure, PruneOptions, perform, plan
from tests.compiler.pruning.nets import answers, feeds, net, parameters

BLOCKS = ("conv", "depthwise", "residual", "excite", "fork", "slope", "pool")


def build(blocks: list[str], widths: list[int], tail: str) -> ir.Model:
    """A net of ``blocks`` one after the other; ``widths`` are the channels of those that make channels."""
    lines, weights, value, width = [], {"w_in": (widths[0], 3, 3, 3)}, "v0", widths[0]
    lines.append("v0 = Conv<pads = [1, 1, 1, 1]>(x, w_in)")
    for index, (block, fresh) in enumerate(zip(blocks, widths[1:], strict=False), start=1):
        new = f"v{index}"
        w, u, t, s = (f"{letter}{index}" for letter in ("w", "u", "t", "s"))
        if block == "conv":
            lines += [f"{t} = Relu({value})", f"{new} = Conv({t}, {w})"]
            weights[w], width = (fresh, width, 1, 1), fresh
        elif block == "depthwise":
            lines.append(f"{new} = Conv<group = {width}, pads = [1, 1, 1, 1]>({value}, {w})")
            weights[w] = (width, 1, 3, 3)
        elif block == "residual":
            lines += [f"{t} = Conv({value}, {w})", f"{s} = HardSwish({t})", f"{new} = Add({s}, {value})"]
            weights[w] = (width, width, 1, 1)
        elif block == "excite":
            lines += [f"{t} = GlobalAveragePool({value})", f"{s} = Conv({t}, {w})", f"{u}o = Conv({s}, {u})"]
            lines.append(f"{new} = Mul({value}, {u}o)")
            weights[w], weights[u] = (fresh, width, 1, 1), (width, fresh, 1, 1)
        elif block == "fork":
            lines += [f"{t} = Conv({value}, {w})", f"{new} = Concat<axis = 1>({t}, {value})"]
            weights[w], width = (fresh, width, 1, 1), fresh + width
        elif block == "slope":
            lines.append(f"{new} = PRelu({value}, {w})")
            weights[w] = (width, 1, 1)
        else:
            lines.append(f"{new} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({value})")
        value = new
    if tail == "flatten":
        lines += [f"f = Flatten({value})", "y = Gemm(f, w_out, b_out)"]
        weights |= {"w_out": (width * 16, 4), "b_out": (4,)}
    else:
        lines += [f"f = ReduceMean<keepdims = 0>({value}, axes)", "y = MatMul(f, w_out)"]
        weights |= {"w_out": (width, 4)}
    text = "g (float[1, 3, 4, 4] x) => (float[1, 4] y) {\n" + "\n".join(lines) + "\n}"
    constants = {} if tail == "flatten" else {"axes": np.array([2, 3])}
    return net(text, weights, constants=constants)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    blocks=st.lists(st.sampled_from(BLOCKS), max_size=5),
    widths=st.lists(st.integers(2, 12), min_size=6, max_size=6),
    tail=st.sampled_from(("flatten", "mean")),
    share=st.floats(0.1, 0.9),
    granularity=st.sampled_from((1, 2, 4)),
    measure=st.sampled_from(list(Measure)),
)
def test_any_net_stays_valid(
    blocks: list[str], widths: list[int], tail: str, share: float, granularity: int, measure: Measure
) -> None:
    model = build(blocks, widths, tail)
    data = feeds((3, 4, 4), samples=3)
    try:
        made = plan(model, PruneOptions(share, measure, granularity), data)
    except UnsupportedModel as error:
        assert max(widths) <= 12
        assert error.refusals
        return
    cut = perform(model, made)
    assert answers(cut, data).shape == (3, 4)
    assert parameters(cut) == made.after.parameters
    assert (made.after.parameters < made.before.parameters) == (made.removed > 0)
    for group in made.groups:
        assert len(group.removed) <= 0.75 * group.channels
        assert not group.removed or (group.channels - len(group.removed)) % granularity == 0
