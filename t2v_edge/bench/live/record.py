"""What a client of the live server sees, as figures. No sockets and no clock: times are handed in, in seconds.

A frame's **offset** is its arrival less its own time (``pts * time_base``). On a stream that keeps its schedule all
offsets are the same: what they differ by is jitter, and what they grow by is drift.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Optional

import numpy as np
import numpy.typing as npt

from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import Showing
from t2v_edge.util.timing import Latency

KEPT = 256
"""Captions that may wait for their first frame, and generations whose first frame is remembered."""
ENDS = 0.1
"""Drift is between the middle of the first offsets and that of the last ones: of so many of them, a share."""


@dataclass
class _Said:
    """A caption that was sent. due_s: when its video should be there, where that is another time."""

    segment: int
    sent_s: float
    due_s: float
    generation: Optional[int] = None


@dataclass(frozen=True)
class Received:
    """What came to one client, or, summed up, to several.

    seconds: from the first frame to the last. missed: frames of the schedule that were never made, or left out by a
    lower quality; dropped: made, and not sent; replaced: the same where the caption changed, which is as it should be;
    late: more than half a frame behind the middle of all. old: frames of an older generation than had been announced,
    or than had come. captions: that were sent; answered: those whose first frame came; overtaken: those that the server
    left out for a newer one. gap_ms: the longest time without a frame.
    """

    frames: int = 0
    seconds: float = 0.0
    missed: int = 0
    dropped: int = 0
    replaced: int = 0
    late: int = 0
    old: int = 0
    captions: int = 0
    answered: int = 0
    overtaken: int = 0
    gap_ms: float = 0.0

    @property
    def lost(self) -> int:
        """Captions that no frame came for."""
        return self.captions - self.answered - self.overtaken


class ClientRecord:
    """One client's. fps: the stream's. `begin` forgets what was counted before, as at the end of a warm-up.

    Keeps 8 bytes a frame. A caption is answered by the first frame of its generation or a later one.
    """

    def __init__(self, fps: Fraction) -> None:
        self.period_s = float(1 / fps)
        self._shown = self._newest = -1
        self._firsts: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._before: Optional[tuple[FrameHeader, float]] = None
        self.begin()

    def begin(self) -> None:
        """What is counted, is counted from here on."""
        self._waiting: deque[_Said] = deque(maxlen=KEPT)
        self._offsets_s = array("d")
        self._latencies_ms = array("d")
        self._cues_ms = array("d")
        self._missed = self._dropped = self._replaced = self._old = self._captions = self._overtaken = 0
        self._begun_s: Optional[float] = None
        self._gap_s = 0.0

    @property
    def frames(self) -> int:
        return len(self._offsets_s)

    @property
    def waits(self) -> bool:
        """Whether a caption has not been answered yet."""
        return bool(self._waiting)

    def say(self, segment: int, sent_s: float, due_s: Optional[float] = None) -> None:
        """A caption is sent. due_s: when its video should be there; None: as soon as it is sent."""
        self._captions += 1
        self._waiting.append(_Said(segment, sent_s, sent_s if due_s is None else due_s))

    def hear(self, showing: Showing) -> None:
        """The server has taken a caption."""
        self._shown = max(self._shown, showing.generation)
        waiting, self._waiting = self._waiting, deque(maxlen=KEPT)
        for said in waiting:
            if said.segment == showing.segment:
                said.generation = showing.generation
            if said.generation is None and said.segment < showing.segment:
                self._overtaken += 1
            else:
                self._waiting.append(said)
        self._answer()

    def see(self, header: FrameHeader, at_s: float) -> None:
        """A frame has come."""
        self._old += header.generation < max(self._shown, self._newest)
        if self._begun_s is None:
            self._begun_s = at_s
        elif self._before is not None:
            last, then_s = self._before
            made = max(header.sequence - last.sequence, 1)
            if header.generation == last.generation:
                self._dropped += made - 1
            else:
                self._replaced += made - 1
            self._missed += max(header.pts - last.pts - made, 0)
            self._gap_s = max(self._gap_s, at_s - then_s)
        self._before = header, at_s
        self._offsets_s.append(at_s - float(header.pts * header.time_base))
        if header.generation > self._newest:
            self._newest = header.generation
            self._firsts.append((header.generation, at_s))
            self._answer()

    def _answer(self) -> None:
        """Captions whose generation is known and has come, or a later one, are answered."""
        while self._waiting and self._waiting[0].generation is not None:
            said = self._waiting[0]
            came = next((at for generation, at in self._firsts if generation >= (said.generation or 0)), None)
            if came is None:
                return
            self._waiting.popleft()
            self._latencies_ms.append(1000 * (came - said.sent_s))
            self._cues_ms.append(1000 * (came - said.due_s))

    # What came of it.

    @property
    def latencies_ms(self) -> Sequence[float]:
        """From sending a caption to its first frame, of each that was answered."""
        return self._latencies_ms

    @property
    def cues_ms(self) -> Sequence[float]:
        """From when a caption's video was due to its first frame."""
        return self._cues_ms

    def deviations_ms(self) -> npt.NDArray[np.float64]:
        """How far each frame came from where its pts put it, the middle of all being on time."""
        offsets = np.asarray(self._offsets_s, np.float64)
        return 1000 * (offsets - np.median(offsets)) if len(offsets) else offsets

    def drift_frames(self) -> Optional[float]:
        """By how many frames the stream has fallen behind its own times, or run ahead; None with too few frames."""
        count = int(ENDS * self.frames)
        if count < 2:
            return None
        offsets = np.asarray(self._offsets_s, np.float64)
        return float(np.median(offsets[-count:]) - np.median(offsets[:count])) / self.period_s

    def seen(self) -> Received:
        late = int((self.deviations_ms() > 500 * self.period_s).sum())
        seconds = 0.0 if self._before is None or self._begun_s is None else self._before[1] - self._begun_s
        return Received(
            self.frames,
            seconds,
            self._missed,
            self._dropped,
            self._replaced,
            late,
            self._old,
            self._captions,
            len(self._latencies_ms),
            self._overtaken,
            1000 * self._gap_s,
        )


def add_up(seen: Sequence[Received]) -> Received:
    """Counts of all; seconds and gap_ms are the longest."""
    counts = {f.name: sum(getattr(one, f.name) for one in seen) for f in fields(Received)}
    longest = {name: max((getattr(one, name) for one in seen), default=0.0) for name in ("seconds", "gap_ms")}
    return Received(**{**counts, **longest})


def latency(records: Sequence[ClientRecord]) -> Latency:
    """From sending a caption to its first frame, of all clients."""
    return Latency.of([value for record in records for value in record.latencies_ms])


def cue_offset(records: Sequence[ClientRecord]) -> Latency:
    """From when a caption's video was due to its first frame, of all clients."""
    return Latency.of([value for record in records for value in record.cues_ms])


def jitter_ms(records: Sequence[ClientRecord]) -> Optional[float]:
    """The 95th percentile of how far frames came from their own times, of all clients; None without frames."""
    off = np.concatenate([np.abs(record.deviations_ms()) for record in records]) if records else np.empty(0)
    return float(np.percentile(off, 95)) if len(off) else None
