"""Verification: graphs beside torch, golden vectors, latencies."""
