"""Quantizers held against each other: same models, same calibration data, one run."""
