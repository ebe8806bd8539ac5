"""Judges, look by look, whether what serves has drifted, and whether pruning is what makes it worse."""
