"""Comparisons and scoreboards that are commands of their own, run as `python -m benchmarks.NAME`."""
