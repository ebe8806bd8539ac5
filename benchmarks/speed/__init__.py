"""What pruning buys on this machine, row by row, each with its interval."""
