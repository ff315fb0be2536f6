"""Side-by-side measurements, such as `python -m benchmarks.training`; each module says its command."""
