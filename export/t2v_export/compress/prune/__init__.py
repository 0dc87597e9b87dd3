"""Structured pruning of checkpoints: channels, heads, units, layers and tokens leave, and the rest loads anywhere."""

from t2v_export.compress.prune.passes import prune_checkpoint

__all__ = ["prune_checkpoint"]
