"""Rewrites, one pattern per file; see compiler/passes/pipelines.py for their order."""
