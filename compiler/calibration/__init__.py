"""Calibration: data in, ranges of a float hub's activations out."""
