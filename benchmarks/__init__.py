"""Benchmarks of the claims this project makes about speed and memory: `python -m benchmarks`."""
