"""Axes: what can be removed together from an exported graph, found by unification of layouts."""
