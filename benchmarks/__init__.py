"""Side-by-side measurements: `python -m benchmarks.training`, `python -m benchmarks.sampling`."""
