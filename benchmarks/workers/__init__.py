"""Programs that run one library each; `benchmarks.harness` starts them."""
