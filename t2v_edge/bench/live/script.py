"""What the clients of a live benchmark say, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Optional

from t2v_edge.captions.cues import play, read_cues
from t2v_edge.errors import UsageError

WHO = ("a person", "a man", "a woman")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "grey")
WHAT = ("walking", "running", "dancing", "waving", "jumping", "dribbling a basketball")
ENGLISH = tuple(f"{who} in a {colour} shirt is {what}" for colour in COLOURS for what in WHAT for who in WHO)
CHINESE = tuple(
    f"{who}穿着{colour}衣服在{what}"
    for colour in ("红色", "蓝色", "绿色", "白色", "黑色")
    for who in ("一个人", "一个男人", "一个女人")
    for what in ("走路", "跑步", "跳舞", "挥手")
)
CAPTIONS = tuple(caption for pair in zip(ENGLISH, CHINESE) for caption in pair) + ENGLISH[len(CHINESE) :]
"""So many that by the time one comes again a server has long forgotten what its text stage made of it."""

GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class TimedCaption:
    """A caption to be sent at `at_s` of a run."""

    at_s: float
    text: str


@dataclass(frozen=True)
class Script:
    """captions: sent in turn, every `every_s` seconds, `switches` of them at most; or `cues`: (seconds, caption), sent
    when they say. A run is `seconds` long."""

    seconds: float
    every_s: float = 1.0
    captions: Sequence[str] = CAPTIONS
    switches: Optional[int] = None
    cues: Optional[Sequence[tuple[float, str]]] = None

    @property
    def is_timed(self) -> bool:
        """Whether captions have times of their own."""
        return self.cues is not None

    def lines(self, client: int, clients: int, fps: Fraction) -> Iterator[TimedCaption]:
        """What client number `client` of so many says, in the order of time.

        Without cues the clients take turns, no two say the same at about the same time, and where within a frame's
        time a caption falls is spread evenly: intervals of whole frames would measure one place of it alone.
        """
        if self.cues is not None:
            yield from (TimedCaption(at_s, text) for at_s, text in self.cues if at_s <= self.seconds)
            return
        first = client * len(self.captions) // clients
        count = 0
        while self.switches is None or count < self.switches:
            at_s = self.every_s * (count + (client + 1) / clients) + (count * GOLDEN) % 1.0 / float(fps)
            if at_s >= self.seconds:
                return
            yield TimedCaption(at_s, self.captions[(first + count) % len(self.captions)])
            count += 1


def make_script(
    path: Optional[Path], seconds: Optional[float], every_s: Optional[float], switches: Optional[int]
) -> Script:
    """The script of these options: a .vtt or .srt file is played in time, the lines of a .txt file come in turn.

    Defaults: captions of our own, every second, for ten seconds or `switches` of them. A file of cues ends a second
    after its last one. Raises `UsageError`, or `CueError` for a file.
    """
    if path is not None and path.suffix.lower() != ".txt":
        if every_s is not None or switches is not None:
            raise UsageError(f"the cues of {path} have their own times; leave --every and --switches out")
        cues = tuple((at_s, event.text) for at_s, event in play(read_cues(path)))
        return Script(cues[-1][0] + 1.0 if seconds is None else seconds, cues=cues)
    captions = CAPTIONS if path is None else tuple(cue.text for cue in read_cues(path))
    if len(captions) < 2:
        raise UsageError(f"{path} has one caption; a second one is needed to change to")
    if switches is not None and seconds is not None:
        if every_s is not None:
            raise UsageError("--switches, --every and --seconds: two of them say the third")
        return Script(seconds, seconds / (switches + 1), captions, switches)
    every = 1.0 if every_s is None else every_s
    if switches is not None:
        return Script(every * (switches + 1), every, captions, switches)
    return Script(10.0 if seconds is None else seconds, every, captions)
