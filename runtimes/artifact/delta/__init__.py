"""Applying deltas on the device; see docs/formats/delta.md. Encoding lives in compiler/publish/delta."""

from runtimes.artifact.delta.apply import apply_delta, read_header

__all__ = ["apply_delta", "read_header"]
