"""Runs in the peers' environment: ONNX DATA.npy FLOAT.tflite [INT8.tflite].

Images are [N, 3, H, W]; onnx2tf wants channels last. Where its direct writer fails, its older way through TensorFlow is tried.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    source, data, plain, *quantized = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if not quantized:
            _convert(source, folder)
            shutil.copy(next(Path(folder).glob("*_float32.tflite")), plain)
            return
        import numpy as np

        samples = Path(folder) / "samples.npy"
        np.save(samples, np.load(data).transpose(0, 2, 3, 1))
        # Mean 0 and deviation 1: the samples are what the net takes.
        name = _input_name(source)
        _convert(source, folder, "-oiqt", "-cind", name, str(samples), "[[[[0,0,0]]]]", "[[[[1,1,1]]]]")
        shutil.copy(next(Path(folder).glob("*_integer_quant.tflite")), quantized[0])


def _convert(source: str, folder: str, *more: str) -> None:
    copy = Path(folder) / "model.onnx"
    shutil.copy(source, copy)
    command = [sys.executable, "-m", "onnx2tf", "-i", str(copy), "-o", folder, "-nuo", "-n", *more]
    for backend in ("flatbuffer_direct", "tf_converter"):
        done = subprocess.run([*command, "-tb", backend], capture_output=True, text=True, check=False)
        if not done.returncode:
            return
    sys.exit((done.stderr or done.stdout)[-2000:])


def _input_name(source: str) -> str:
    import onnx

    return str(onnx.load(source, load_external_data=False).graph.input[0].name)


if __name__ == "__main__":
    main()
