"""Public name of `t2v_edge.captions.lines`."""

from __future__ import annotations

from t2v_edge.captions.lines import CaptionLines, format_event, parse_event, read_transcript

__all__ = ["CaptionLines", "format_event", "parse_event", "read_transcript"]
