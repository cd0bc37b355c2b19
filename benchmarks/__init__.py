"""Benchmarks of speed and memory, always as a ratio to a named peer in the same run."""
