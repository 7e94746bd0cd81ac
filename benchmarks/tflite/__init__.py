"""Our .tflite files against those of onnx2tf and litert-torch for the same nets: latency, size, writing time, memory."""
