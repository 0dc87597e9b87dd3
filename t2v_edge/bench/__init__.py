"""Benchmarks: frames a second and latency on this machine; `live` measures captions through a server."""
