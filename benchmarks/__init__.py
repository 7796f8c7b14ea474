"""Timings of pseudojvp beside lineax: `python -m benchmarks`."""
