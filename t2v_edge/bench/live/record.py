"""A client's measurements. No sockets and no clock: times are passed in, in seconds.

A frame's **offset** is its arrival minus its own time (``pts * time_base``). All offsets are equal on a stream that
keeps its schedule. Their differences are jitter, their growth is drift.
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
"""The most captions that wait for their first frame, and generations whose first frame is kept."""
ENDS = 0.1
"""Drift is the median of the last offsets minus that of the first. Each is this share of all offsets."""


@dataclass
class _SentCaption:
    """A caption that was sent. due_s: when its video should be there."""

    segment: int
    sent_s: float
    due_s: float
    generation: Optional[int] = None


@dataclass(frozen=True)
class Received:
    """Counts of one client's frames and captions, or of several clients'.

    seconds: from the first frame to the last. gap_ms: the longest time without a frame.

    Frames. missed: in the schedule, but not made; a lower quality leaves frames out. dropped: made, but not sent.
    replaced: made and not sent because the caption changed, which is correct. late: more than half a frame behind the
    median offset. old: of an older generation than one that was announced or had come.

    Captions. captions: sent. answered: whose first frame came. overtaken: that the server skipped for a newer one.
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
        """Captions without a frame that were not overtaken."""
        return self.captions - self.answered - self.overtaken


class ClientRecord:
    """The measurements of one client. fps: the stream's.

    Keeps 8 bytes a frame. A caption is answered by the first frame of its generation or a later one.
    """

    def __init__(self, fps: Fraction) -> None:
        self.period_s = float(1 / fps)
        self._shown = self._newest = -1
        self._firsts: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._before: Optional[tuple[FrameHeader, float]] = None
        self.reset()

    def reset(self) -> None:
        """Forget all counts, as at the end of a warm-up."""
        self._waiting: deque[_SentCaption] = deque(maxlen=KEPT)
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
    def is_waiting(self) -> bool:
        """Whether a caption has no answer yet."""
        return bool(self._waiting)

    def caption_sent(self, segment: int, sent_s: float, due_s: Optional[float] = None) -> None:
        """Record a caption. due_s: when its video should be there, None for as soon as it is sent."""
        self._captions += 1
        self._waiting.append(_SentCaption(segment, sent_s, sent_s if due_s is None else due_s))

    def caption_shown(self, showing: Showing) -> None:
        """Record that the server shows a caption."""
        self._shown = max(self._shown, showing.generation)
        waiting, self._waiting = self._waiting, deque(maxlen=KEPT)
        for sent in waiting:
            if sent.segment == showing.segment:
                sent.generation = showing.generation
            if sent.generation is None and sent.segment < showing.segment:
                self._overtaken += 1
            else:
                self._waiting.append(sent)
        self._answer()

    def frame_received(self, header: FrameHeader, at_s: float) -> None:
        """Record a frame's arrival."""
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
        """Mark captions as answered whose generation, or a later one, has come."""
        while self._waiting and self._waiting[0].generation is not None:
            sent = self._waiting[0]
            came = next((at for generation, at in self._firsts if generation >= (sent.generation or 0)), None)
            if came is None:
                return
            self._waiting.popleft()
            self._latencies_ms.append(1000 * (came - sent.sent_s))
            self._cues_ms.append(1000 * (came - sent.due_s))

    @property
    def latencies_ms(self) -> Sequence[float]:
        """From sending a caption to its first frame, of each answered caption."""
        return self._latencies_ms

    @property
    def cues_ms(self) -> Sequence[float]:
        """From a caption's due time to its first frame, of each answered caption."""
        return self._cues_ms

    def deviations_ms(self) -> npt.NDArray[np.float64]:
        """Each frame's offset minus the median offset."""
        offsets = np.asarray(self._offsets_s, np.float64)
        return 1000 * (offsets - np.median(offsets)) if len(offsets) else offsets

    def drift_frames(self) -> Optional[float]:
        """Frames by which the stream fell behind its own times, negative if it ran ahead. None with too few frames."""
        count = int(ENDS * self.frames)
        if count < 2:
            return None
        offsets = np.asarray(self._offsets_s, np.float64)
        return float(np.median(offsets[-count:]) - np.median(offsets[:count])) / self.period_s

    def received(self) -> Received:
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


def total(received: Sequence[Received]) -> Received:
    """The counts of all clients together; seconds and gap_ms are the longest."""
    counts = {f.name: sum(getattr(one, f.name) for one in received) for f in fields(Received)}
    longest = {name: max((getattr(one, name) for one in received), default=0.0) for name in ("seconds", "gap_ms")}
    return Received(**{**counts, **longest})


def latency(records: Sequence[ClientRecord]) -> Latency:
    """From sending a caption to its first frame, of all clients."""
    return Latency.of([value for record in records for value in record.latencies_ms])


def cue_offset(records: Sequence[ClientRecord]) -> Latency:
    """From a caption's due time to its first frame, of all clients."""
    return Latency.of([value for record in records for value in record.cues_ms])


def jitter_ms(records: Sequence[ClientRecord]) -> Optional[float]:
    """The 95th percentile of all clients' absolute deviations; None without frames."""
    off = np.concatenate([np.abs(record.deviations_ms()) for record in records]) if records else np.empty(0)
    return float(np.percentile(off, 95)) if len(off) else None
