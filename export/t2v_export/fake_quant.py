"""Public name of `t2v_export.compress.fake_quant`: a stage whose weights are rounded while it is trained."""

from __future__ import annotations

from t2v_export.compress.fake_quant import quantize_aware

__all__ = ["quantize_aware"]
