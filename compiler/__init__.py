"""The build side: importers, passes, pruning, quantization, exporters, verification, report, publication.

Importing this package loads none of torch, onnx, onnxruntime, coremltools.
"""
