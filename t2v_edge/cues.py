"""Public name of `t2v_edge.captions.cues`."""

from __future__ import annotations

from t2v_edge.captions.cues import Cue, parse_cues, play, read_cues

__all__ = ["Cue", "parse_cues", "play", "read_cues"]
