"""Protocols: readers of benchmarks and folders, each into the same set of samples, and what such a set holds."""
