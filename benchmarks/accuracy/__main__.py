"""Starts `run`: it is a module of its own because processes that are spawned cannot import a package's `__main__`."""

from benchmarks.accuracy.run import main

main()
