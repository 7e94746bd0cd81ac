"""Encoding deltas: find tensors, plan segments, code streams, keep the smallest candidate. Decoding: runtimes/artifact/delta."""

from compiler.publish.delta.encode import DeltaReport, encode_delta

__all__ = ["DeltaReport", "encode_delta"]
