from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2v_edge.captions.lines import MAX_LINE_BYTES, CaptionLines, format_event, read_transcript
from t2v_edge.captions.merger import CaptionEvent, schedule
from t2v_edge.errors import CueError

TRANSCRIPT = (
    CaptionEvent("speech", 0, 0, "a", False, 0.1, 0.3, 0.4),
    CaptionEvent("speech", 0, 1, "a person", False, 0.1, 0.6, 0.7),
    CaptionEvent("speech", 0, 2, "一个人 \ud83c \n", True, 0.1, 1.2, 1.5),
    CaptionEvent("speech", 1, 0, "a dog", True, received_s=3),
)


def lines_of(data, times=None):
    return CaptionLines(io.BytesIO(data), clock=iter(times or range(1000)).__next__)


def test_lines_are_finals_of_rising_segments_stamped_when_they_come():
    events = list(lines_of("\ufeffa person\r\n\n  一个人  \nthe last".encode(), (1.0, 2.5, 9.0)))
    assert [(e.stream, e.segment, e.text, e.final, e.received_s) for e in events] == [
        ("lines", 0, "a person", True, 1.0),
        ("lines", 1, "一个人", True, 2.5),
        ("lines", 2, "the last", True, 9.0),
    ]


def test_a_line_is_given_before_the_next_is_read():
    class Terminal:
        asked = 0

        def readline(self, limit):
            self.asked += 1
            return b"a person\n"

    terminal = Terminal()
    next(CaptionLines(terminal))
    assert terminal.asked == 1


def test_json_lines_are_events_and_their_own_stamp_is_not_believed():
    data = b"""{"text": "a person", "segment": 7, "revision": 2, "final": false, "received_s": 1e9, "start_s": 0.5}
    {"text": "a dog", "segment": 3}
    {"text": "a dog"}
    plain"""
    events = list(lines_of(data, (1.0, 1.5, 2.0, 3.0)))
    assert [(e.segment, e.revision, e.final, e.received_s) for e in events] == [
        (7, 2, False, 1.0),
        (3, 0, True, 1.5),
        (8, 0, True, 2.0),
        (9, 0, True, 3.0),
    ]
    assert events[0].start_s == 0.5 and events[0].end_s is None


@pytest.mark.parametrize(
    "line, words",
    [
        (b"{", "not valid JSON"),
        (b'{"text": 1}', "must be a string"),
        (b'{"segment": 1}', "has no text"),
        (b'{"text": "a", "is_final": true}', "'is_final' is not a field"),
        (b'{"text": "a", "final": false}', "have a segment"),
        (b'{"text": "a", "segment": 1.5}', "segment must be a whole number"),
        (b'{"text": "a", "start_s": NaN}', "start_s"),
        (b'{"text": "a", "segment": 1' + b"0" * 5000 + b"}", "line 2"),
        (b'{"a":' * 5000, "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 5000, "has 5000 characters"),
        (b"x" * MAX_LINE_BYTES * 3, "bytes or more"),
        (b"x" * MAX_LINE_BYTES, "bytes or more"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_the_next_is_read(line, words):
    lines = lines_of(b"first\n" + line + b"\nthird\n")
    assert next(lines).text == "first"
    with pytest.raises(CueError, match="line 2") as refused:
        next(lines)
    assert words in str(refused.value) and len(str(refused.value)) < 400
    event = next(lines)
    assert (event.text, event.segment) == ("third", 1)
    assert next(lines, None) is None


def test_an_overlong_line_that_never_ends_is_read_in_bounded_pieces():
    class Endless:
        left = 200

        def readline(self, limit):
            self.left -= 1
            return b"x" * limit if self.left > 0 else b""

    with pytest.raises(CueError, match="line 1"):
        next(CaptionLines(Endless()))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_events_or_an_error_of_ours(data):
    lines = lines_of(data)
    for _ in range(400):
        try:
            event = next(lines, None)
        except CueError:
            continue
        if event is None:
            return
        assert event.final or event.text is not None
    raise AssertionError("more events than bytes")


def test_a_transcript_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(format_event(event) + "\n" for event in TRANSCRIPT), encoding="utf-8")
    assert read_transcript(path) == TRANSCRIPT
    assert schedule(read_transcript(path)) == ((0.7, "a person"), (1.5, "一个人"), (3, "a dog"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"received_s": 0.5}, "line 2: received_s is 0.5"),
        ({"received_s": None}, "line 2"),
        ({"stream": 5}, "line 2"),
    ],
)
def test_a_transcript_that_is_wrong_is_named_with_its_line(tmp_path, change, words):
    path = tmp_path / "t.jsonl"
    said = {**json.loads(format_event(TRANSCRIPT[1])), **change}
    path.write_text(f"{format_event(TRANSCRIPT[1])}\n{json.dumps(said)}\n")
    with pytest.raises(CueError, match=words):
        read_transcript(path)


def test_a_transcript_without_times_or_events_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "segment": 0, "revision": 0, "final": true}')
    with pytest.raises(CueError, match="has no received_s"):
        read_transcript(path)
    path.write_text("\n \n")
    with pytest.raises(CueError, match="no events"):
        read_transcript(path)
