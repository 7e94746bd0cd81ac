"""Quantization: one spec, planned and performed on the hub, that every exporter lowers with the same numbers."""
