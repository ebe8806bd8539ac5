"""What the engine can cut, what the cut costs, and how a peer (Torch-Pruning) does on the same models.

    make bench-engine DATA=<folder>

`coverage` needs no data. The folder may hold `cifar10/`, `cifar_resnet/`, `sst2/` and `stories260k/`; a part whose folder
is missing is skipped and the result says so. The table and the JSON are written to `benchmarks/results/`.
"""
