"""Measurements on the target hardware."""
