"""Graphs in other floating-point types."""
