"""The front door: the `secateur` command and the local stack that it starts."""
