"""`python -m optim_bench` is `optim-bench`."""

from optim_bench.cli import main

main()
