"""Readers of benchmarks and folders, each into the same set of samples."""
