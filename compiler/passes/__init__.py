"""Passes over the hub. ``clean_up`` brings any float model at the hub's opset into the form that compiler/hub.py states."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)

_MAX_ROUNDS = 50  # the deepest real net needed four; more means that two rewrites undo each other


def clean_up(model: ir.Model) -> ir.Model:
    """Return the canonical hub form of ``model``, which stays as it is. The same input gives the same bytes.

    Quantized constants keep their codes: a DequantizeLinear is never folded into floats.

    Args:
        model: a model with exactly opset HUB_OPSET of the default domain and static input shapes.

    Raises:
        SourceError: the model is inconsistent (shapes contradict, onnxsim fails).
        ExtraMissing: onnxsim is not installed.
        ValueError: the model is at another opset; importers convert it first.
    """
    from compiler.hub import HUB_IR_VERSION, HUB_OPSET
    from compiler.passes.codes import feed_codes, restore_codes
    from compiler.passes.serialize import from_bytes, to_bytes

    if model.opset_imports.get("") != HUB_OPSET:
        raise ValueError(f"clean_up takes opset {HUB_OPSET}, the model has {dict(model.opset_imports)}")
    count = model.graph.num_nodes()
    model = from_bytes(to_bytes(model))
    model.ir_version = HUB_IR_VERSION
    model, codes = feed_codes(model)
    model, _ = run_pipeline("prepare", model)
    for _ in range(_MAX_ROUNDS):
        model, modified = run_pipeline("rewrite", model)
        if not modified:
            break
    else:
        raise AssertionError(f"the rewrites did not settle in {_MAX_ROUNDS} rounds")
    model, _ = run_pipeline("finish", model)
    restore_codes(model, codes)
    log.info("clean-up: %d nodes became %d", count, model.graph.num_nodes())
    return model


def run_pipeline(name: str, model: ir.Model) -> tuple[ir.Model, bool]:
    """Run the passes of PIPELINES[name] once each, in place where they can. Returns the model and whether it changed."""
    from compiler.passes.pipelines import PASSES, PIPELINES

    modified = False
    for step in PIPELINES[name]:
        result = PASSES.get(step)(model)
        model, modified = result.model, modified or result.modified
    return model, modified
