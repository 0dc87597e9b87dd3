from __future__ import annotations

import math
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2v_edge.bundle.tokenizer import normalise
from t2v_edge.captions.merger import MAX_EVENT_CHARACTERS, CaptionEvent, CaptionMerger, MergeOptions, schedule, shorten
from t2v_edge.captions.wording import Wording
from t2v_edge.errors import CaptionError, UsageError
from t2v_edge.util.limits import MAX_CAPTION_CHARACTERS

AT_ONCE = MergeOptions(hold_s=0)
SPOKEN = (
    "a",
    "a person",
    "a person is",
    "a person is running",
    "a person is running in a",
    "a person is running in a red",
    "a person is running in a red shirt",
)


def partial(text, segment=0, revision=0, at=0.0):
    return CaptionEvent("s", segment, revision, text, False, received_s=at)


def final(text, segment=0, revision=0, at=0.0):
    return CaptionEvent("s", segment, revision, text, True, received_s=at)


def shown_of(merger, events):
    return [text for text in map(merger.accept, events) if text is not None]


# ---- what is shown


def test_a_caption_that_grows_word_by_word_is_encoded_once_for_each_word_that_means_something():
    merger = CaptionMerger(AT_ONCE)
    shown = shown_of(merger, [partial(text, 0, i, float(i)) for i, text in enumerate(SPOKEN)])
    assert shown == [
        "a person",
        "a person is running",
        "a person is running in a red",
        "a person is running in a red shirt",
    ]
    assert merger.stats.shown == 4 and merger.stats.held == 3
    assert merger.accept(final("A person is running, in a red shirt.", 0, 9, 9.0)) is None, "word for word the same"


def test_the_three_partials_that_complaints_are_about_cost_two_encodings():
    assert shown_of(
        CaptionMerger(AT_ONCE), [partial(t, 0, i) for i, t in enumerate(("a", "a person", "a person is running"))]
    ) == ["a person", "a person is running"]


def test_words_that_come_fast_are_shown_together_after_the_hold():
    merger = CaptionMerger(MergeOptions(hold_s=0.5))
    events = [partial(text, 0, i, 0.1 * i) for i, text in enumerate(SPOKEN[:6])]
    assert shown_of(merger, events) == ["a person"]
    assert merger.due_s == pytest.approx(0.6)
    assert merger.poll(0.59) is None
    assert merger.poll(0.61) == "a person is running in a red"
    assert merger.due_s is None and merger.poll(100.0) is None
    assert merger.accept(partial(SPOKEN[6], 0, 9, 100.0)) == SPOKEN[6], "after a pause at once"


def test_an_event_that_comes_late_shows_what_was_due_before_it():
    merger = CaptionMerger()
    shown_of(merger, [partial("a person", 0, 0, 0.0), partial("a person is running", 0, 1, 0.1)])
    assert merger.text == "a person"
    assert merger.accept(partial("a person", 0, 0, 5.0)) == "a person is running"
    assert merger.stats.stale == 1


def test_a_final_is_shown_at_once_whatever_the_hold():
    merger = CaptionMerger(MergeOptions(hold_s=10))
    assert merger.accept(partial("a person", at=1.0)) == "a person"
    assert merger.accept(partial("a person runs", revision=1, at=1.1)) is None
    assert merger.accept(final("the person runs", revision=1, at=1.2)) == "the person runs"
    assert merger.due_s is None


def test_a_final_that_differs_in_a_function_word_alone_is_shown_and_a_partial_is_not():
    merger = CaptionMerger(AT_ONCE)
    merger.accept(partial("a person runs"))
    assert merger.accept(partial("the person runs", revision=1)) is None and merger.due_s is None
    assert merger.accept(final("the person runs", revision=1)) == "the person runs"


def test_chinese_counts_by_characters():
    merger = CaptionMerger(AT_ONCE)
    spoken = ("一", "一个人", "一个人在跑", "一个人正在跑步", "一个人正在跑步。")
    shown = shown_of(merger, [partial(text, 0, i, 0.1 * i) for i, text in enumerate(spoken)])
    assert shown == ["一个人在跑"]
    assert merger.poll(5.0) == "一个人正在跑步。", "one character more shows once it has stayed"


def test_a_smaller_change_is_shown_once_it_has_stayed_and_repeating_it_does_not_make_it_younger():
    merger = CaptionMerger(MergeOptions(min_words=2, settle_s=1.0))
    assert merger.accept(partial("a person is running", at=0.0)) == "a person is running"
    for revision in range(1, 10):
        assert merger.accept(partial("a person is running fast", 0, revision, 0.1 * revision)) is None
    assert merger.due_s == pytest.approx(1.1)
    assert merger.accept(partial("a person is running far", 0, 10, 1.0)) is None
    assert merger.due_s == pytest.approx(2.0)
    assert merger.poll(2.0) == "a person is running far"


def test_a_newer_segment_that_only_repeats_what_is_shown_waits_for_its_end():
    merger = CaptionMerger(AT_ONCE)
    merger.accept(final("a person is running", 0))
    assert merger.accept(partial("a person", 1)) is None and merger.due_s is None
    assert merger.accept(partial("a person is dancing", 1, 1)) == "a person is dancing"
    merger.accept(partial("a person", 2))
    assert merger.accept(final("a person", 2)) == "a person"


def test_a_word_taken_back_in_the_same_segment_is_a_change():
    merger = CaptionMerger(AT_ONCE)
    merger.accept(partial("a person is running backwards"))
    assert merger.accept(partial("a person is running", revision=1)) == "a person is running"


def test_words_in_another_order_are_a_change():
    merger = CaptionMerger(AT_ONCE)
    merger.accept(partial("a dog bites a man"))
    assert merger.accept(partial("a man bites a dog", revision=1)) == "a man bites a dog"


# ---- order, finality, segments


def test_older_revisions_are_stale_and_the_same_again_is_a_duplicate():
    merger = CaptionMerger(AT_ONCE)
    events = [partial("a person waves", 0, 5), partial("a dog", 0, 4), partial("a person waves", 0, 5)]
    assert shown_of(merger, events) == ["a person waves"]
    assert (merger.stats.accepted, merger.stats.stale, merger.stats.duplicates) == (1, 1, 1)


def test_a_final_outranks_every_partial_of_its_segment_and_a_later_final_corrects_it():
    merger = CaptionMerger(AT_ONCE)
    events = [
        partial("a person runs", 0, 7),
        final("a man runs", 0, 3),
        partial("a dog runs", 0, 99),
        final("a woman runs", 0, 4),
        final("a cat runs", 0, 3),
    ]
    assert shown_of(merger, events) == ["a person runs", "a man runs", "a woman runs"]


def test_an_older_segment_is_past_once_a_newer_one_is_shown():
    merger = CaptionMerger(AT_ONCE)
    events = [final("a dog runs", 5), final("a cat runs", 4), partial("a man runs", 4), partial("a bird", 0, 99)]
    assert shown_of(merger, events) == ["a dog runs"]
    assert merger.stats.stale == 3


def test_the_end_of_a_sentence_is_not_lost_to_the_first_word_of_the_next():
    merger = CaptionMerger(AT_ONCE)
    merger.accept(partial("a person is run", 0))
    assert merger.accept(partial("the", 1)) is None
    assert merger.accept(partial("a person is runny", 0, 1)) is None, "of a segment that is past only the final counts"
    assert merger.accept(final("a person is running", 0, 2)) == "a person is running"
    assert merger.accept(partial("the dog", 1, 1)) == "the dog"
    assert merger.accept(final("a person is resting", 0, 3)) is None


def test_what_is_held_is_not_lost_to_a_newer_segment_that_says_nothing_yet():
    merger = CaptionMerger(MergeOptions(hold_s=1))
    shown_of(
        merger,
        [
            partial("a person", 0, 0, 0.0),
            partial("a person runs", 0, 1, 0.1),
            partial("", 1, 0, 0.2),
            final("", 1, 1, 0.3),
            partial("a", 2, 0, 0.4),
        ],
    )
    assert merger.poll(1.0) == "a person runs"


def test_an_empty_partial_takes_back_what_is_held_of_its_segment():
    merger = CaptionMerger(MergeOptions(hold_s=1))
    shown_of(merger, [final("a person", 0, 0, 0.0), partial("noise", 1, 0, 0.1), partial(" \u200b", 1, 1, 0.2)])
    assert merger.due_s is None and merger.text == "a person"


def test_a_final_takes_the_place_of_what_is_held_of_its_segment():
    for ending in ("a dog", ""):
        merger = CaptionMerger(MergeOptions(hold_s=1))
        shown_of(merger, [partial("a person", 0, 0, 0.0), partial("a cat", 0, 1, 0.1), final(ending, 0, 2, 0.2)])
        assert merger.due_s is None and merger.poll(9.0) is None
        assert merger.text == (ending or "a person")


def test_a_late_correction_of_the_text_shown_is_still_known_by_its_revision():
    merger = CaptionMerger(AT_ONCE)
    events = [final("a dog", 0, 2), partial("a", 1), final("a cat", 0, 1), final("a cow", 0, 3)]
    assert shown_of(merger, events) == ["a dog", "a cow"]
    assert merger.stats.stale == 1


def test_a_clock_that_goes_back_stands_still():
    for first in (lambda merger: merger.poll(10.0), lambda merger: merger.accept(partial("", 0, 0, 10.0))):
        merger = CaptionMerger(MergeOptions(min_words=2, hold_s=0, settle_s=0.5))
        first(merger)
        assert merger.poll(0.5) is None
        assert merger.accept(partial("running", 0, 1, 1.0)) is None and merger.due_s == 10.5


def test_a_small_change_that_has_stayed_keeps_the_hold_too():
    merger = CaptionMerger(MergeOptions(min_words=2, hold_s=2, settle_s=0.5))
    shown_of(merger, [final("a person", 0, 0, 0.0), partial("a person runs", 1, 0, 0.1)])
    assert merger.due_s == 2.0


def test_an_empty_final_shows_what_was_due_before_it():
    merger = CaptionMerger()
    shown_of(merger, [partial("a person", 0, 0, 0.0), partial("a person runs", 0, 1, 0.1)])
    assert merger.accept(final("", 1, 0, 5.0)) == "a person runs"
    merger = CaptionMerger()
    shown_of(merger, [final("a person", 0, 0, 0.0), partial("a dog", 2, 0, 0.1)])
    assert merger.accept(final("a person", 1, 0, 5.0)) == "a dog", "and so does one that says the same"


def test_an_empty_final_keeps_the_text_unless_it_is_told_to_clear_it():
    keep, clear = CaptionMerger(), CaptionMerger(MergeOptions(clear_on_empty=True))
    events = [final("a person runs", 0), final("\u200b", 1), final("a man", 0, 1)]
    assert shown_of(keep, events[:2]) == ["a person runs"] and keep.text == "a person runs"
    assert shown_of(clear, events) == ["a person runs", ""] and clear.text == ""


def test_events_of_another_stream_are_refused():
    merger = CaptionMerger()
    merger.accept(final("a person"))
    with pytest.raises(CaptionError, match="a merger of its own"):
        merger.accept(CaptionEvent("other", 1, 0, "a dog", True))


# ---- texts


@pytest.mark.parametrize(
    "changes",
    [
        {"text": None},
        {"text": b"a"},
        {"text": "x" * (MAX_EVENT_CHARACTERS + 1)},
        {"text": "x" * (1 << 20)},
        {"segment": -1},
        {"segment": 2**53},
        {"segment": True},
        {"revision": 1.0},
        {"final": 1},
        {"stream": "s" * 65},
        {"stream": None},
        {"received_s": math.nan},
        {"received_s": math.inf},
        {"received_s": None},
        {"start_s": "1"},
        {"received_s": 10**400},
    ],
)
def test_what_is_no_event_is_refused_when_it_is_made(changes):
    fields = {"stream": "s", "segment": 0, "revision": 0, "text": "a", "final": True, **changes}
    with pytest.raises(CaptionError, match="caption"):
        CaptionEvent(**fields)


@pytest.mark.parametrize("changes", [{"min_words": 0}, {"min_characters": 0}, {"hold_s": -1}, {"settle_s": math.nan}])
def test_options_out_of_range_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        MergeOptions(**changes)


@pytest.mark.parametrize("now", [math.nan, math.inf])
def test_a_time_that_is_none_is_refused(now):
    with pytest.raises(UsageError, match="now_s"):
        CaptionMerger().poll(now)


@given(st.text(max_size=200))
@example("e\u200b\u0301")
def test_a_text_to_show_is_one_that_the_tokenizer_leaves_as_it_is(text):
    shown = shorten(text)
    assert not shown or normalise(shown) == shown


def test_a_long_text_is_cut_at_a_word_and_chinese_anywhere():
    for words in ("walking " * 200, "x walking " * 200, "xy walking " * 200):
        short = shorten(words)
        assert (
            short.endswith(("walking", "x", "xy"))
            and MAX_CAPTION_CHARACTERS - 10 < len(short) <= MAX_CAPTION_CHARACTERS
        )
    assert shorten("人" * 4096) == "人" * MAX_CAPTION_CHARACTERS
    assert shorten("x" * MAX_CAPTION_CHARACTERS + " y") == "x" * MAX_CAPTION_CHARACTERS
    assert len(shorten("\ufdfa" * MAX_EVENT_CHARACTERS)) <= MAX_CAPTION_CHARACTERS


@pytest.mark.parametrize(
    "text",
    [
        "\u0300\u0316" * 2048,
        "\ufdfa" * 4096,
        "\ud800" * 4096,
        "\x00" * 4096,
        "a\u200b" * 2048,
        "的" * 4096,
        "a " * 2048,
        "👩‍👩‍👧" * 800,
        "'" * 4096,
    ],
)
def test_no_text_takes_long(text):
    merger = CaptionMerger()
    start = time.perf_counter()
    merger.accept(partial(text))
    merger.accept(final(text, 1))
    assert time.perf_counter() - start < 1.0, "tens of milliseconds are usual, machines are busy"
    assert len(merger.text) <= MAX_CAPTION_CHARACTERS


# ---- any order of events


@st.composite
def histories(draw):
    """Events of a few segments, each text one of a few; one final a segment at most; duplicated and shuffled."""
    texts = st.sampled_from(
        (
            "",
            "a",
            "a person",
            "a person is",
            "a person is running",
            "the person is running",
            "a dog is running",
            "A person, is running!",
            "一个人",
            "一个人在跑步",
            "…",
            "running person",
        )
    )
    events = []
    for segment in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 4))
        events += [partial(draw(texts), segment, revision) for revision in range(count)]
        if draw(st.booleans()):
            events.append(final(draw(texts), segment, draw(st.integers(0, count))))
    events += draw(st.lists(st.sampled_from(events), max_size=4))
    return draw(st.permutations(events))


def timed(events, gaps):
    at, result = 0.0, []
    for event, gap in zip(events, gaps):
        at += gap
        result.append(CaptionEvent(event.stream, event.segment, event.revision, event.text, event.final, received_s=at))
    return result


GAPS = st.lists(st.sampled_from((0.0, 0.05, 0.2, 1.0)), min_size=40, max_size=40)


@settings(max_examples=200, deadline=None)
@given(histories(), GAPS)
def test_no_order_of_events_breaks_an_invariant(history, gaps):
    events = timed(history, gaps)
    merger, shown, sent, last_partial = CaptionMerger(), "", set(), -math.inf
    segment = -1
    for event in events:
        sent.add(shorten(event.text))
        text = merger.accept(event)
        assert merger.text == (shown if text is None else text)
        assert merger._shown.segment >= segment, "segments shown never go back"
        segment = merger._shown.segment
        assert len(merger._ranks) <= 2
        if text is not None:
            assert text in sent and text, "what is shown was sent"
            assert Wording.of(text).units != Wording.of(shown).units or not Wording.of(text).units
            if not event.final:
                assert event.received_s - last_partial >= 0.3 - 1e-9, "partials keep the hold"
            last_partial, shown = event.received_s, text
        due = merger.due_s
        assert due is None or due > event.received_s, "what is due is shown, never forgotten"
    stats = merger.stats
    assert stats.accepted + stats.stale + stats.duplicates == len(events)
    assert stats.shown <= stats.accepted


@settings(max_examples=200, deadline=None)
@given(histories(), GAPS)
def test_the_newest_final_wins_in_any_order(history, gaps):
    newest = max(event.segment for event in history)
    merger = CaptionMerger()
    for event in timed(history, gaps):
        merger.accept(event)
    if merger.due_s is not None:
        merger.poll(merger.due_s)
    wanted = [shorten(e.text) for e in history if e.final and e.segment == newest and shorten(e.text)]
    if wanted:
        said = Wording.of(wanted[0]).units
        assert Wording.of(merger.text).units == said and (said or merger.text == wanted[0])


@settings(max_examples=200, deadline=None)
@given(histories(), GAPS, st.data())
def test_a_duplicate_changes_nothing(history, gaps, data):
    events = timed(history, gaps)
    at = data.draw(st.integers(0, len(events) - 1))
    again = events[data.draw(st.integers(0, at))]
    with_it = events[: at + 1] + [again] + events[at + 1 :]
    assert schedule(events) == schedule(with_it)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from("a person is running in the red shirt and um dancing 人 在 跑 步".split()),
        min_size=1,
        max_size=12,
    )
)
def test_no_more_encodings_than_words_that_mean_something(words):
    events = [partial(" ".join(words[: i + 1]), 0, i, float(i)) for i in range(len(words))]
    merger = CaptionMerger(AT_ONCE)
    shown = shown_of(merger, events)
    text = Wording.of(" ".join(words))
    assert len(shown) <= sum(text.words.values()) + sum(text.characters.values())


def test_a_stream_of_many_segments_keeps_a_bounded_state():
    merger = CaptionMerger()
    for segment in range(200):
        merger.accept(partial(f"a person {segment}", segment, 0, float(segment)))
    tracemalloc.start()
    try:
        for segment in range(200, 2200):
            merger.accept(partial(f"a person {segment}", segment, 0, float(segment)))
            merger.accept(final(f"a man {segment}", segment, 1, segment + 0.5))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 64 * 1024, "2,000 segments kept would be hundreds of kilobytes"
    assert merger.stats.shown == 200 + 2 * 2000


def test_a_schedule_is_what_would_have_been_shown_live():
    events = [
        partial("a", 0, 0, 0.0),
        partial("a person", 0, 1, 0.2),
        partial("a person is running", 0, 2, 0.3),
        final("a man is running", 0, 3, 2.0),
        final("a dog", 1, 0, 2.0),
    ]
    assert schedule(events) == ((0.2, "a person"), (0.5, "a person is running"), (2.0, "a dog"))
