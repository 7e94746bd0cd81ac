"""Pruning: plan which channels leave, remove them for real, repair their consumers by least squares.

``prune`` does all three; ``plan``, ``perform`` and ``reconstruct`` are its parts.
"""

from __future__ import annotations

from compiler.pruning.performing import perform
from compiler.pruning.planning import plan
from compiler.pruning.pruner import Pruned, PruneEvidence, prune
from compiler.pruning.reconstruction import reconstruct
from compiler.pruning.types import Measure, PruneOptions, PrunePlan

__all__ = ["Measure", "PruneEvidence", "PruneOptions", "PrunePlan", "Pruned", "perform", "plan", "prune", "reconstruct"]
