"""A merger of caption events, which may be partial, revised or out of order, into the text to show."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

from t2v_edge.bundle.tokenizer import tidy
from t2v_edge.captions.wording import Wording
from t2v_edge.errors import CaptionError, UsageError
from t2v_edge.util.limits import MAX_CAPTION_CHARACTERS

MAX_EVENT_CHARACTERS = 4096
MAX_NAME_CHARACTERS = 64
MAX_NUMBER = 2**53 - 1  # what JSON carries exactly everywhere
_WORD_MARGIN = 32


@dataclass(frozen=True)
class CaptionEvent:
    """One revision of a segment's text. Raises `CaptionError` for a value out of range.

    stream: the speaker, at most 64 characters.
    segment: the number of the utterance. It rises, 0 to 2**53 - 1.
    revision: the number of the segment's revision. It rises, 0 to 2**53 - 1.
    text: the segment's whole text so far, at most 4,096 characters. `shorten` cuts it before it is shown.
    final: whether the recogniser is done with the segment.
    start_s, end_s: when it was spoken, or a cue's times, in seconds of the source.
    received_s: when the event came, in seconds of the receiver's own clock. Never a remote sender's time.
    """

    stream: str
    segment: int
    revision: int
    text: str
    final: bool
    start_s: Optional[float] = None
    end_s: Optional[float] = None
    received_s: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.stream, str) or len(self.stream) > MAX_NAME_CHARACTERS:
            raise CaptionError(f"a caption's stream must be a name of at most {MAX_NAME_CHARACTERS} characters")
        for name in ("segment", "revision"):
            number = getattr(self, name)
            if type(number) is not int or not 0 <= number <= MAX_NUMBER:
                raise CaptionError(f"a caption's {name} must be a whole number from 0 to {MAX_NUMBER}")
        if not isinstance(self.text, str):
            raise CaptionError(f"a caption's text must be a string, not {type(self.text).__name__}")
        if len(self.text) > MAX_EVENT_CHARACTERS:
            raise CaptionError(
                f"the caption has {len(self.text)} characters, an event may have {MAX_EVENT_CHARACTERS};"
                " send what should be seen, not the whole transcript"
            )
        if type(self.final) is not bool:
            raise CaptionError("a caption's final must be true or false")
        for name in ("start_s", "end_s", "received_s"):
            seconds = getattr(self, name)
            if seconds is None and name != "received_s":
                continue
            if type(seconds) not in (int, float) or not abs(seconds) <= MAX_NUMBER:
                raise CaptionError(f"a caption's {name} must be a number of seconds")


@dataclass(frozen=True)
class MergeOptions:
    """Options that decide when a change of a partial caption is shown. Raises `UsageError` for a value out of range.

    min_words: the words that must be added, left out or exchanged. Articles, forms of "to be", fillers and the like
        never count (see `wording`).
    min_characters: the same for Chinese and Japanese characters, about two to a word.
    hold_s: the least seconds between a shown text and the next partial, 0 to 60. Words that come fast are shown
        together.
    settle_s: the seconds after which a smaller change is shown if it stays, 0 to 60.
    clear_on_empty: whether an empty final removes the text (`accept` then returns ""). By default the last text stays,
        because recognisers end a stretch of noise with an empty result.
    """

    min_words: int = 1
    min_characters: int = 2
    hold_s: float = 0.3
    settle_s: float = 0.8
    clear_on_empty: bool = False

    def __post_init__(self) -> None:
        for name in ("min_words", "min_characters"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("hold_s", "settle_s"):
            if not 0 <= getattr(self, name) <= 60:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 0 to 60 seconds")


@dataclass(frozen=True)
class MergeStats:
    """Counts of events and texts.

    accepted: events that were newer than what was known of their segment.
    stale: older revisions, partials after a final, and past segments.
    duplicates: events that came before.
    held: accepted partials that were not shown when they came.
    shown: shown texts. Each costs one encoding.
    """

    accepted: int = 0
    stale: int = 0
    duplicates: int = 0
    held: int = 0
    shown: int = 0


class _Rank(NamedTuple):
    """The rank of an event in its segment. A final outranks any partial, and a later revision an earlier one."""

    final: bool
    revision: int


@dataclass(frozen=True, eq=False)
class _Text:
    """A text of a segment, shown or held since `since_s`."""

    segment: int
    text: str
    wording: Wording
    since_s: float


class CaptionMerger:
    """A merger of one stream's events, in any order, into the text to show. It never waits and reads no clock.

    Within a segment a final outranks every partial, and a later revision an earlier one. An event of no higher rank
    than the newest known is stale or a duplicate, and ignored. A newer segment replaces older ones with its first
    event. From an older one only a final is still taken, and only until the newer one is shown. So the first "a" of a
    sentence does not hide the end of the one before. The shown segment's number never falls.

    A final is shown when it comes, unless its words are shown already. A partial is shown when it changes enough
    (`MergeOptions`), and at the earliest `hold_s` after the text before. Until then it is held, and a newer one
    replaces it. If a partial's segment is newer than the shown one, only added words count, because it has just begun:
    "a person" after "a person is running" waits for its verb. Call `poll` with the time at `due_s`.

    The clock is that of the events' `received_s` and of `poll`. If it goes back, it counts as standing still. A source
    that begins again at segment 0 is a new stream and needs a new merger. The length of a text bounds time and memory.
    Use it from one thread.
    """

    def __init__(self, options: Optional[MergeOptions] = None) -> None:
        self.options = MergeOptions() if options is None else options
        self._stream: Optional[str] = None
        self._now = -math.inf
        self._ranks: dict[int, _Rank] = {}  # of the newest segment and of the one shown
        self._newest = -1
        self._shown = _Text(-1, "", Wording.of(""), -math.inf)
        self._held: Optional[_Text] = None
        self._stats = MergeStats()

    @property
    def text(self) -> str:
        """The shown text, normalised. Empty before the first."""
        return self._shown.text

    @property
    def stats(self) -> MergeStats:
        """The counts so far."""
        return self._stats

    @property
    def due_s(self) -> Optional[float]:
        """When to call `poll` for the held text. None if only another event can change the text."""
        return None if self._held is None else self._due(self._held)

    def accept(self, event: CaptionEvent) -> Optional[str]:
        """Take an event. Returns the text to show, None if it stays. Raises `CaptionError` for another stream."""
        if self._stream not in (None, event.stream):
            raise CaptionError(
                f"the event is of stream {event.stream!r} and this merger of {self._stream!r}; "
                "give each stream a merger of its own"
            )
        self._stream = event.stream
        self._now = max(self._now, event.received_s)
        if not self._is_news(event):
            return self._release()
        text = shorten(event.text)
        shown = self._finish(event.segment, text) if event.final else self._hold(event.segment, text)
        if shown is None and not event.final:
            self._count(held=self._stats.held + 1)
        return shown

    def poll(self, now_s: float) -> Optional[str]:
        """The held text if it is due, else None. now_s: of the same clock as the events' `received_s`."""
        if not math.isfinite(now_s):
            raise UsageError(f"now_s is {now_s}, expected seconds of the events' clock")
        self._now = max(self._now, now_s)
        return self._release()

    def _is_news(self, event: CaptionEvent) -> bool:
        """Whether the event outranks all that is known of its segment. If so, its rank is kept."""
        rank, known = _Rank(event.final, event.revision), self._ranks.get(event.segment)
        if known == rank:
            self._count(duplicates=self._stats.duplicates + 1)
            return False
        past = event.segment < self._shown.segment or (event.segment < self._newest and not event.final)
        if past or (known is not None and rank < known):
            self._count(stale=self._stats.stale + 1)
            return False
        self._newest = max(self._newest, event.segment)
        self._ranks[event.segment] = rank
        self._forget()
        self._count(accepted=self._stats.accepted + 1)
        return True

    def _hold(self, segment: int, text: str) -> Optional[str]:
        """Hold a partial instead of the one held before, and show it if it is due."""
        wording, before = Wording.of(text), self._held
        mine = before is not None and before.segment == segment
        if wording.says_something:
            # A revision with the same text keeps the time of the first.
            since_s = before.since_s if before is not None and mine and before.text == text else self._now
            self._held = _Text(segment, text, wording, since_s)
        elif mine:
            self._held = None
        return self._release()

    def _finish(self, segment: int, text: str) -> Optional[str]:
        """Show a final's text, unless its words are shown already."""
        counts = bool(text) or self.options.clear_on_empty
        held = self._held
        if held is not None and (segment == held.segment or (counts and segment > held.segment)):
            self._held = None
        if not counts:
            return self._release()
        wording = Wording.of(text)
        if text == self._shown.text or (wording.units and wording.units == self._shown.wording.units):
            self._shown = replace(self._shown, segment=segment)
            self._forget()
            return self._release()
        return self._show(_Text(segment, text, wording, self._now))

    def _release(self) -> Optional[str]:
        """Show the held text if it is due."""
        due = self.due_s
        if self._held is None or due is None or due > self._now:
            return None
        held, self._held = self._held, None
        return self._show(replace(held, since_s=self._now))

    def _due(self, held: _Text) -> Optional[float]:
        """When a partial may be shown. None if it changes nothing."""
        change = self._shown.wording.change_to(held.wording, only_added=held.segment > self._shown.segment)
        earliest = self._shown.since_s + self.options.hold_s
        if change.words >= self.options.min_words or change.characters >= self.options.min_characters:
            return max(held.since_s, earliest)
        if change.words or change.characters:
            return max(held.since_s + self.options.settle_s, earliest)
        return None

    def _show(self, text: _Text) -> str:
        self._shown = text
        self._forget()
        self._count(shown=self._stats.shown + 1)
        return text.text

    def _forget(self) -> None:
        """Forget all ranks but those of the newest and the shown segment."""
        kept = (self._newest, self._shown.segment)
        self._ranks = {segment: rank for segment, rank in self._ranks.items() if segment in kept}

    def _count(self, **counts: int) -> None:
        self._stats = replace(self._stats, **counts)


def shorten(text: str) -> str:
    """The text to show: normalised, and cut to `MAX_CAPTION_CHARACTERS`, at the end of a word if one is near.

    Empty if nothing is left. `normalise` does not change the result.
    """
    # Dropped characters may have separated two that combine into one, so the text is normalised again.
    tidied = unicodedata.normalize("NFKC", tidy(text[:MAX_EVENT_CHARACTERS]))
    head = tidied[:MAX_CAPTION_CHARACTERS]
    if tidied[MAX_CAPTION_CHARACTERS : MAX_CAPTION_CHARACTERS + 1] not in ("", " "):
        space = head.rfind(" ", MAX_CAPTION_CHARACTERS - _WORD_MARGIN)
        head = head if space < 0 else head[:space]
    return head


def schedule(events: Iterable[CaptionEvent], options: Optional[MergeOptions] = None) -> tuple[tuple[float, str], ...]:
    """Play events through a merger: (seconds, text) for each change of the shown text, as in a live stream.

    The events are of one stream, and their `received_s` should not fall. Of two texts at one time the later counts.
    Raises `CaptionError`.
    """
    merger = CaptionMerger(options)
    shown: dict[float, str] = {}
    now_s = -math.inf
    for event in events:
        now_s = max(now_s, event.received_s)
        _poll_until(merger, now_s, shown)
        text = merger.accept(event)
        if text is not None:
            shown[now_s] = text
    _poll_until(merger, math.inf, shown)
    return tuple(shown.items())


def _poll_until(merger: CaptionMerger, end_s: float, shown: dict[float, str]) -> None:
    due = merger.due_s
    if due is not None and due <= end_s:
        text = merger.poll(due)
        if text is not None:
            shown[due] = text
