"""Caption files and growing captions played into a live stream, in made-up time."""

from __future__ import annotations

import pytest

from t2v_edge.captions.cues import parse_cues, play
from t2v_edge.captions.merger import CaptionEvent, CaptionMerger
from tests.t2v_edge.live_device import in_thread, show

STORY = """WEBVTT

00:00.500 --> 00:02.000
a person is running

00:02.000 --> 00:03.250
a person is dancing

00:02.617 --> 00:03.000
a person is waving

00:03.717 --> 00:05.000
一个人 walking
"""
WITHIN_S = 0.1


def reads(device, cost_s):
    """Have the text stage take made-up time as well; the captions that it was given."""
    given = []

    def encode(caption):
        given.append(caption.text)
        device.clock.work(cost_s)
        return device._model.encode(caption)

    device.encode = encode
    return given


@pytest.mark.parametrize("fps", [24, 30, 60])
@pytest.mark.parametrize("ahead", [0, 2])
def test_each_cue_of_a_webvtt_file_is_seen_within_100_ms_of_its_time(live, device, clock, fps, ahead):
    stream = live(fps=fps, ahead=ahead)
    device.cost_s = {"motion": 0.001, "render": 0.012}
    reads(device, 0.02)
    clock.workers = 3  # the renderer, the viewer, and whoever plays the file
    start_s, events = clock.now(), list(play(parse_cues(STORY, ".vtt")))

    def speak():
        merger = CaptionMerger()
        for at_s, event in events:
            clock.pass_time(stream, start_s + at_s - clock.now())
            stream.set_caption(merger.accept(event))
        with clock.condition:
            clock.workers -= 1
            clock._advance(clock.condition)

    speaking = in_thread(speak)
    shown = show(stream, 5 * fps)
    speaking()
    firsts = {}
    for frame, at_s in shown:
        firsts.setdefault(frame.generation, at_s)
    assert [at_s for at_s, _ in events] == [0.5, 2.0, 2.617, 3.0, 3.717], "the overlapped cue comes back"
    assert len(firsts) == 1 + len(events)
    offsets = [firsts[number] - start_s - at_s for number, (at_s, _) in enumerate(events, 1)]
    assert all(0 < offset <= WITHIN_S for offset in offsets), offsets


def test_a_caption_that_grows_word_by_word_costs_one_text_stage_for_each_meaningful_change(live, device, clock):
    stream = live("a person is waving")
    show(stream, 3)
    merger, given = CaptionMerger(), reads(device, 0.02)
    for revision, text in enumerate(("a", "a person", "a person is", "a person is running")):
        said = merger.accept(CaptionEvent("speech", 1, revision, text, False, received_s=clock.now()))
        for shown in (said, merger.poll(clock.now() + 0.4)):
            if shown:
                stream.set_caption(shown)
        clock.pass_time(stream, 0.4)
    assert given == ["a person", "a person is running"]
    assert stream.generation == 2, "no flicker: two changes, as many as mean something"
