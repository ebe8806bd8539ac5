"""Secateur: prune exported programs, measure, and prove the result."""

from secateur.allocate import Macs, Parameters, Ratio
from secateur.errors import InputError
from secateur.pruning import Report, prune

__all__ = ["InputError", "Macs", "Parameters", "Ratio", "Report", "prune"]
