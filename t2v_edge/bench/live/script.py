"""The script of a live benchmark: the clients' captions and their times."""

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
"""More than a server's text stage keeps results for, so that a caption is encoded again when it comes again."""

GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class TimedCaption:
    """A caption to be sent `at_s` seconds after a run's start."""

    at_s: float
    text: str


@dataclass(frozen=True)
class Script:
    """The captions of a run that is `seconds` long.

    captions: sent in turn, one every `every_s` seconds, at most `switches` of them. cues: (seconds, caption), sent at
    their times instead, if they are given.
    """

    seconds: float
    every_s: float = 1.0
    captions: Sequence[str] = CAPTIONS
    switches: Optional[int] = None
    cues: Optional[Sequence[tuple[float, str]]] = None

    @property
    def is_timed(self) -> bool:
        """Whether the captions have their own times."""
        return self.cues is not None

    def lines(self, client: int, clients: int, fps: Fraction) -> Iterator[TimedCaption]:
        """The captions of one client, in order of time. client: its number, from 0 to below `clients`.

        Without cues the clients take turns, with different captions. A caption's place within a frame's time is spread
        evenly: intervals of whole frames would always measure the same place.
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
    """The script of these options. path: a .vtt or .srt file to play in time, or a .txt file with a caption a line.

    Defaults: built-in captions, one a second, for ten seconds or for `switches` of them. A file of cues ends one second
    after its last cue. Raises `UsageError`, or `CueError` for a file.
    """
    if path is not None and path.suffix.lower() != ".txt":
        if every_s is not None or switches is not None:
            raise UsageError(f"the cues of {path} have their own times; leave --every and --switches out")
        cues = tuple((at_s, event.text) for at_s, event in play(read_cues(path)))
        return Script(cues[-1][0] + 1.0 if seconds is None else seconds, cues=cues)
    captions = CAPTIONS if path is None else tuple(cue.text for cue in read_cues(path))
    if len(captions) < 2:
        raise UsageError(f"{path} has one caption; add a second one to change to")
    if switches is not None and seconds is not None:
        if every_s is not None:
            raise UsageError("--switches, --every and --seconds: two of them give the third; leave one out")
        return Script(seconds, seconds / (switches + 1), captions, switches)
    every = 1.0 if every_s is None else every_s
    if switches is not None:
        return Script(every * (switches + 1), every, captions, switches)
    return Script(10.0 if seconds is None else seconds, every, captions)
