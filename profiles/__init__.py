"""Device profiles and what every other package stands on: the root error, the registry, units.

The bottom layer: it imports nothing of ours and nothing heavy.
"""
