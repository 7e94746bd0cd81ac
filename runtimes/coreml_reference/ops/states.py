"""Buffers that a program keeps between its runs. Source: coremltools MIL ops, iOS18 states.py and coreml_dialect/ops.py."""

from __future__ import annotations

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array


@evaluates("read_state")
def read_state(call: Call) -> Array:
    """A copy: later writes do not change what was read."""
    return call.state("input").content.copy()


@evaluates("write_state")
def write_state(call: Call) -> tuple[Array, ...]:
    """No result: the state holds ``data`` from here on."""
    state, value = call.state("input"), call["data"]  # so its file format calls them
    if value.shape != state.content.shape or value.dtype != state.content.dtype:
        raise ValueError(
            f"a state of {state.content.dtype}{list(state.content.shape)} is given {value.dtype}{list(value.shape)}"
        )
    state.content = value.copy()
    return ()
