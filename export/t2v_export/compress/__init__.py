"""Smaller checkpoints: pruned, distilled, and with weights on a grid."""
