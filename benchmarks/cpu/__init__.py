"""Benchmarks on processors."""
