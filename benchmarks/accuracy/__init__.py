"""What published recipes, run end to end through the library, keep of a trained model's accuracy.

    make bench-accuracy DATA=<folder> [SCALE=cpu|gpu] [ROWS="resnet20-structured ..."] [JOBS=3]

The folder holds `cifar10/`, `cifar_resnet/`, `sst2/` and `stories260k/`; a row whose folder is missing is skipped and the
result says so. Scale `gpu` is the full protocol with three seeds; scale `cpu` ends each row within half an hour on two
cores, with fewer epochs and one seed. Every constant of both is in `scales.py`. Tables, numbers and figures are written to
`benchmarks/results/` after every part of a row; a row that is run again does only the parts that are missing.
"""
