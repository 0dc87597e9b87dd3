"""Captions from growing texts, subtitle files, lines of JSON and speech."""

from __future__ import annotations

from t2v_edge.captions.merger import CaptionEvent, CaptionMerger, MergeOptions, MergeStats, schedule

__all__ = ["CaptionEvent", "CaptionMerger", "MergeOptions", "MergeStats", "schedule"]
