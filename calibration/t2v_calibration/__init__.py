"""Calibration for quantization: caption sets, and what each stage sees when they are played."""

from __future__ import annotations

from t2v_calibration.captions import load_captions

__all__ = ["load_captions"]
