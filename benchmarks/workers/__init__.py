"""The sides of the comparisons, each a program that `benchmarks.harness` starts."""
