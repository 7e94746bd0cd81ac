"""The TFLite importer: a flatbuffer's operators as ONNX nodes, executed beforehand by LiteRT in a child process."""
