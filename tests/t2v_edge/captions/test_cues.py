from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2v_edge.captions.cues import MAX_BYTES, MAX_CUES, Cue, parse_cues, play, read_cues
from t2v_edge.captions.merger import schedule
from t2v_edge.errors import CaptionError, CueError

VTT = """WEBVTT - a story
Kind: captions
Language: en

STYLE
::cue(.yellow) { color: yellow }

REGION
id:fred
width:40%

NOTE This is a comment
of two lines

NOTE

intro
00:01.000 --> 00:04.000 align:start position:0%
<v.loud Mary>A <c.yellow>person</c> is <00:02.000>walking &amp; waving</v>

100:00:02.500 --> 100:00:05.250
一个人
正在跑步
"""

SRT = """1
00:00:01,000 --> 00:00:04,000
{\\an8}<i>A person</i> is walking

2
0:1:2.5-->00:01:03,07  X1:40 X2:600 Y1:20 Y2:50
5 < 6 &lt;b&gt;
"""


def times(cues):
    return [(at, event.text) for at, event in play(cues)]


def test_webvtt_is_read_with_its_blocks_tags_and_entities():
    assert parse_cues(VTT, ".vtt") == (
        Cue(1.0, 4.0, "A person is walking & waving"),
        Cue(360002.5, 360005.25, "一个人 正在跑步"),
    )


def test_subrip_is_read_with_commas_dots_and_short_numbers():
    assert parse_cues(SRT, ".srt") == (Cue(1.0, 4.0, "A person is walking"), Cue(62.5, 63.07, "5 < 6 <b>"))


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_marks_and_line_endings_of_any_kind_change_nothing(tmp_path, ending, mark):
    for text, suffix in ((VTT, ".vtt"), (SRT, ".srt"), ("a\n\nb", ".txt")):
        path = tmp_path / f"x{suffix.upper()}"
        path.write_bytes((mark + text.replace("\n", ending)).encode())
        assert read_cues(path) == parse_cues(text, suffix)


def test_a_text_file_has_a_caption_on_each_line_for_four_seconds():
    assert parse_cues("# a comment\n a person \n\n一个人\n", ".txt") == (
        Cue(0.0, 4.0, "a person"),
        Cue(4.0, 8.0, "一个人"),
    )


def test_cues_without_text_are_left_out():
    assert parse_cues("1\n00:01 --> 00:02\n<i></i>\n\n2\n00:03 --> 00:04\nx\n\n3\n00:05 --> 00:06", ".srt") == (
        Cue(3.0, 4.0, "x"),
    )


def test_subrip_takes_lines_of_spaces_for_empty_ones_and_webvtt_does_not():
    assert parse_cues("WEBVTT\n\n00:01.000 --> 00:02.000\na\n \nb", ".vtt") == (Cue(1.0, 2.0, "a b"),)
    assert len(parse_cues("1\n00:01 --> 00:02\na\n \t\n2\n00:03 --> 00:04\nb\n   ", ".srt")) == 2


@given(st.integers(0, 9999 * 3600_000 - 2))
def test_times_are_exact(start):
    def text(ms):
        return f"{ms // 3600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"

    (cue,) = parse_cues(f"WEBVTT\n\n{text(start)} --> {text(start + 1)}\nx", ".vtt")
    assert (cue.start_s, cue.end_s) == (start / 1000, (start + 1) / 1000)


@pytest.mark.parametrize(
    "text, suffix, words",
    [
        ("", ".vtt", "line 1: a WebVTT file begins with WEBVTT"),
        ("1\n00:01 --> 00:02\na", ".vtt", "line 1: a WebVTT file begins"),
        ("WEBVTTX\n\n", ".vtt", "line 1"),
        ("WEBVTT", ".vtt", "no captions"),
        ("WEBVTT\n\nNOTE only this", ".vtt", "no captions"),
        ("WEBVTT\n00:01.000 --> 00:02.000\na", ".vtt", "line 2: a cue begins without an empty line"),
        ("WEBVTT\n\n00:01.000 -> 00:02.000\na", ".vtt", "line 3: '00:01.000 -> 00:02.000' is not a line of times"),
        ("WEBVTT\n\n1\n00:01.000 -> 00:02.000\na", ".vtt", "line 4"),
        ("WEBVTT\n\nname\n00:01.0000 --> 00:02.000\na", ".vtt", "line 4"),
        ("WEBVTT\n\n00:61.000 --> 00:02.000\na", ".vtt", "line 3: minutes and seconds go to 59"),
        ("WEBVTT\n\n60:01.000 --> 00:02.000\na", ".vtt", "line 3: minutes and seconds"),
        ("WEBVTT\n\n00:02.000 --> 00:02.000\na", ".vtt", "line 3: the cue does not end after it starts"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\na\n00:03.000 --> 00:04.000\nb", ".vtt", "line 5: a cue begins without"),
        ("1\n00:01,000 --> 00:02,000\na\n\nlost text\n", ".srt", "line 5: 'lost text' is not a line of times"),
        ("1\nat 00:01 --> 00:02\na", ".srt", "line 2"),
        ("00:01 --> 00:02x\na", ".srt", "line 1"),
        ("٠٠:٠١ --> 00:02\na", ".srt", "line 1"),
        ("1\n-00:01 --> 00:02\na", ".srt", "line 2"),
        ("00000:00:01 --> 00000:00:02\na", ".srt", "line 1"),
        ("1\n00:01 --> 00:02\n" + "x" * 5000, ".srt", "line 2: the caption has 5000 characters"),
        ("a\n" + "x" * 5000, ".txt", "line 2: the caption has 5000 characters"),
        ("a\n" * (MAX_CUES + 1), ".txt", f"more than {MAX_CUES} cues"),
        ("x\n" * 5000, ".srt", "without an empty one"),
        ("# nothing\n", ".txt", "no captions"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, suffix, words):
    with pytest.raises(CueError) as refused:
        parse_cues(text, suffix, "story")
    assert words in str(refused.value) and str(refused.value).startswith("story, ")
    assert isinstance(refused.value, CaptionError)


def test_as_many_cues_as_may_be_are_read():
    assert len(parse_cues("a\n" * MAX_CUES, ".txt")) == MAX_CUES


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("x.ass", b"", "does not have the name of a caption file"),
        ("x.vtt", None, "cannot be read"),
        ("x.srt", b"1\r\n00:01 --> 00:02\r\n\xff", "line 3: this is not UTF-8"),
        ("x.srt", "1\n00:01 --> 00:02\na".encode("utf-16"), "line 1: this is not UTF-8"),
        ("x.txt", b"a" * (MAX_BYTES + 1), "is larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, words):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CueError, match=words) as refused:
        read_cues(path)
    assert name in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.text("WEBVTNO0129:.,-> <c/>&;amp\n\r\t\x00{\\}人", max_size=120), st.sampled_from((".vtt", ".srt", ".txt")))
@example("WEBVTT\n\n00:01 --> 00:02\n&#xD800;\x00<", ".vtt")
def test_any_text_gives_cues_or_an_error_of_ours(text, suffix):
    for written in (text, "WEBVTT\n\n00:01.000 --> 00:02.000\n" + text):
        try:
            cues = parse_cues(written, suffix)
        except CueError:
            continue
        assert all(cue.text and 0 <= cue.start_s < cue.end_s for cue in cues)


@pytest.mark.parametrize("suffix", [".vtt", ".srt", ".txt"])
@pytest.mark.parametrize(
    "text",
    [
        "\n" * MAX_BYTES,
        "WEBVTT\n\n" + "<" * (MAX_BYTES - 8),
        "a\n" * (MAX_BYTES // 2),
        " " * MAX_BYTES,
        "1" * MAX_BYTES,
        "1\n00:01 --> 00:02\n" + "{\\" * (MAX_BYTES // 2 - 20),
        "\r\n" * (MAX_BYTES // 2),
        "".join(f"00:01 --> 00:02\n{'&<a' * 1300}\n\n" for _ in range(250)),
        " \n" * (MAX_BYTES // 2),
    ],
    ids=("empty", "tags", "lines", "spaces", "digits", "braces", "crlf", "cues", "blank"),
)
def test_no_file_takes_long(text, suffix):
    start = time.perf_counter()
    try:
        parse_cues(text, suffix)
    except CueError:
        pass
    assert time.perf_counter() - start < 20, "at most 1.7 s was measured, on a busy machine"


def test_a_file_of_empty_lines_takes_no_more_memory_than_its_lines():
    tracemalloc.start()
    try:
        with pytest.raises(CueError):
            parse_cues("\n" * MAX_BYTES, ".srt")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 24 * MAX_BYTES, "a pointer of 8 bytes a line, and the list as it grows"


# ---- in time


def test_cues_play_at_their_starts_as_finals_of_rising_segments():
    events = list(play(parse_cues(SRT, ".srt")))
    assert [(at, e.segment, e.final, e.start_s, e.end_s, e.received_s) for at, e in events] == [
        (1.0, 0, True, 1.0, 4.0, 1.0),
        (62.5, 1, True, 62.5, 63.07, 62.5),
    ]


def test_of_cues_that_overlap_the_one_that_began_last_counts_and_the_other_comes_back():
    assert times([Cue(0, 10, "long"), Cue(3, 5, "short"), Cue(12, 13, "after")]) == [
        (0, "long"),
        (3, "short"),
        (5, "long"),
        (12, "after"),
    ]


def test_of_cues_that_begin_together_the_last_in_the_file_counts_and_the_order_of_the_file_does_not_matter_else():
    assert times([Cue(5, 6, "b"), Cue(0, 2, "a"), Cue(0, 1, "c")]) == [(0, "c"), (1, "a"), (5, "b")]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=12))
def test_what_plays_is_always_a_cue_that_has_begun_and_not_ended(spans):
    cues = [Cue(start, start + length, f"cue {i}") for i, (start, length) in enumerate(spans)]
    played = times(cues)
    assert [at for at, _ in played] == sorted({at for at, _ in played})
    for at in range(30):
        active = [(cue.start_s, i) for i, cue in enumerate(cues) if cue.start_s <= at < cue.end_s]
        if active:
            assert [text for when, text in played if when <= at][-1] == f"cue {max(active)[1]}"


def test_many_overlapping_cues_are_played_quickly():
    cues = [Cue(i / 1000, 100 + i / 1000, f"cue {i}") for i in range(MAX_CUES)]
    start = time.perf_counter()
    assert len(times(cues)) == MAX_CUES
    assert time.perf_counter() - start < 10, "a tenth of a second is usual"


def test_a_played_file_merges_into_a_schedule_without_repeating_a_text():
    cues = [Cue(1, 2, "a person"), Cue(2, 3, "A person."), Cue(3, 4, "a dog")]
    assert schedule(event for _, event in play(cues)) == ((1, "a person"), (3, "a dog"))
