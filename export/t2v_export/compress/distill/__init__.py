"""Distillation: a smaller checkpoint learns what a larger one does, from captions and noise alone."""

from t2v_export.compress.distill.distill import DistillOptions, distill_stage
from t2v_export.compress.distill.render import LOSSES

__all__ = ["LOSSES", "DistillOptions", "distill_stage"]
