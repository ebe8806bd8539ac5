"""Watches what serves, look by look, and steps back to the dense model where the pruning is what makes it worse."""
