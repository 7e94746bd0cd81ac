"""Recurrent cells that MIL lacks, over more steps than are written out, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import export, hub, parse, reference, relative_error
from tests.compiler.exporters.coreml.test_exporter import specification

STEPS, BATCH, INPUT, HIDDEN = 150, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CELLS = {
    "GRU with a bias inside the reset": ("GRU", "linear_before_reset = 1", ""),
    "GRU that resets before": ("GRU", "linear_before_reset = 0", ""),
    "GRU both ways": ("GRU", 'linear_before_reset = 1, direction = "bidirectional"', ""),
    "GRU that clips": ("GRU", "linear_before_reset = 1, clip = 0.3", ""),
    "LSTM with peepholes": ("LSTM", 'direction = "forward"', ", , h0, c0, p"),
    "LSTM with peepholes, both ways": ("LSTM", 'direction = "bidirectional"', ", , h0, c0, p"),
    "LSTM with coupled gates": ("LSTM", "input_forget = 1", ""),
    "LSTM that clips": ("LSTM", "clip = 0.4", ""),
    "RNN that clips": ("RNN", "clip = 0.3", ""),
}


@pytest.mark.parametrize("name", CELLS)
def test_long_sequences(name: str, tmp_path: Path) -> None:
    kind, attributes, more = CELLS[name]
    gates, count = GATES[kind], 2 if "bidirectional" in attributes else 1
    rng = np.random.default_rng(0)
    sizes = {
        "w": (count, gates * HIDDEN, INPUT), "r": (count, gates * HIDDEN, HIDDEN), "b": (count, 2 * gates * HIDDEN),
        "h0": (count, BATCH, HIDDEN), "c0": (count, BATCH, HIDDEN), "p": (count, 3 * HIDDEN),
    }  # fmt: skip
    used = {n: rng.uniform(-0.5, 0.5, size).astype(np.float32) for n, size in sizes.items() if n in "wrb" or n in more}
    outputs, cell = ("y, h, c", f", float[{count},{BATCH},{HIDDEN}] c") if kind == "LSTM" else ("y, h", "")
    text = f"""g (float[{STEPS},{BATCH},{INPUT}] x)
      => (float[{STEPS},{count},{BATCH},{HIDDEN}] y, float[{count},{BATCH},{HIDDEN}] h{cell}) {{
      {outputs} = {kind}<hidden_size = {HIDDEN}, {attributes}>(x, w, r, b{more})
    }}"""
    model = hub(parse(text, **used))
    feeds = {"x": rng.standard_normal((STEPS, BATCH, INPUT)).astype(np.float32)}
    path, _ = export(model, tmp_path)
    with open_session(path, runtime="coreml-reference") as session:
        assert relative_error(session.run(feeds), reference(model, feeds)) <= 1e-5
    main = next(iter(specification(path).mlProgram.functions["main"].block_specializations.values()))
    assert [operation.type for operation in main.operations].count("while_loop") == count


def test_fewer_steps_are_written_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[3,1,2] x) => (float[1,1,3] h) { y, h = GRU<hidden_size = 3>(x, w, r) }"""
    weights = {"w": (1, 9, 2), "r": (1, 9, 3)}
    model = hub(parse(text, **{n: rng.uniform(-1, 1, size).astype(np.float32) for n, size in weights.items()}))
    path, _ = export(model, tmp_path)
    main = next(iter(specification(path).mlProgram.functions["main"].block_specializations.values()))
    assert "while_loop" not in [operation.type for operation in main.operations]
