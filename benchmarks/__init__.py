"""Measure the balancer against what people would use instead: `python -m benchmarks --help`."""
