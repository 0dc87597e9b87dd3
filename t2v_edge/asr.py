"""Public name of `t2v_edge.captions.speech`."""

from __future__ import annotations

from t2v_edge.captions.speech import PcmFile, Recognizer, SpeechCaptions, listen, open_recognizer

__all__ = ["PcmFile", "Recognizer", "SpeechCaptions", "listen", "open_recognizer"]
