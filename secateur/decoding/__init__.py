"""Causal language models that answer token by token: a program without a cache becomes two that share one, and is timed."""
