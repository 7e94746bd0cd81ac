"""Verification: every artifact is executed and held against the source's own outputs."""
