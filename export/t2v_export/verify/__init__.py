"""Verification: differences of graphs from torch, golden vectors, latencies."""
