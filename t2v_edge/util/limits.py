"""Limits that several files share, each with its reason. A limit of one parser stands with that parser."""

from __future__ import annotations

from fractions import Fraction

MAX_SIDE = 8192
"""Pixels a side of a frame that a bundle makes or a stream shows. One such frame takes 201 MB as RGB."""
MAX_WIRE_SIDE = 4096
"""Pixels a side of a frame that is sent to a client. As raw RGB it fits the protocol's payload of 64 MiB."""
MAX_CHECKPOINT_SIDE = 2048
"""Pixels a side of a checkpoint's video. A model makes every pixel itself; streams resize to larger frames."""

MIN_FPS, MAX_FPS = Fraction(1, 60), 1000
"""Frames a second of a stream: from one a minute to one a millisecond."""
MIN_LIVE_FPS, MAX_LIVE_FPS = 1, 240
"""Frames a second in real time, on the wire and of a checkpoint's model.

At more, a frame is hardly longer than the time that a thread needs to wake up.
"""
MAX_TERM = 10**6
"""Numerator and denominator of a rate. Containers keep a time base in 32 bits."""

MAX_SEED = (1 << 64) - 1
"""Seeds are unsigned 64-bit numbers."""
MAX_WIRE_SEED = (1 << 32) - 1
"""Seeds on the wire are unsigned 32-bit numbers. JavaScript's numbers are not exact up to 64 bits."""

MAX_CAPTION_CHARACTERS = 512
"""Characters of a caption, normalised. A caption is a sentence or two; more is refused before it is tokenised."""
MAX_WIRE_CHARACTERS = 2048
"""Characters of a text on the wire. In UTF-8 they take at most half of a message of 16 KiB."""
