"""Distillation: a smaller checkpoint learns what a larger one does, from captions and noise alone."""

from t2v_export.compress.distill.distill import LOSSES, Lessons, distill_stage

__all__ = ["LOSSES", "Lessons", "distill_stage"]
