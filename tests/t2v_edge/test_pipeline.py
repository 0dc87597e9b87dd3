"""The way of a caption: from text to tokens, once."""

from __future__ import annotations

import asyncio
from collections import Counter
from fractions import Fraction

import pytest

from t2v_edge.bundle import tokenizer
from t2v_edge.commands.serve import open_stream
from t2v_edge.pipeline import Pipeline
from t2v_edge.remote.protocol import Control, Hello, Settings, Showing, State
from tests.t2v_edge.live_samples import serving, talking

WALK, RUN = "a person is walking", "a person is running"


@pytest.fixture
def pipeline(bundle_path):
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def counted(monkeypatch):
    """Texts -> how often each was normalised, and how often tokenised."""
    normalised, tokenised = Counter(), Counter()
    normalise, tokenise = tokenizer.normalise, tokenizer.CaptionTokenizer.tokenise

    def counting_normalise(caption):
        normalised[caption] += 1
        return normalise(caption)

    def counting_tokenise(self, text):
        tokenised[text] += 1
        return tokenise(self, text)

    monkeypatch.setattr("t2v_edge.bundle.tokenizer.normalise", counting_normalise)
    monkeypatch.setattr("t2v_edge.play.model.normalise", counting_normalise)
    monkeypatch.setattr("t2v_edge.bundle.tokenizer.CaptionTokenizer.tokenise", counting_tokenise)
    return normalised, tokenised


def test_a_stream_s_captions_are_normalised_and_tokenised_once(pipeline, counted):
    stream = pipeline.stream(WALK, then=[(0.25, RUN)], seconds=0.5)
    assert not stream.truncated
    assert {frame.caption for frame in stream} == {WALK, RUN}
    assert counted == ({WALK: 1, RUN: 1}, {WALK: 1, RUN: 1})


def test_a_caption_that_is_set_is_normalised_and_tokenised_once(pipeline, counted):
    stream = pipeline.stream(WALK)
    next(stream)
    stream.caption = RUN
    while next(stream).caption != RUN:
        pass
    assert counted == ({WALK: 1, RUN: 1}, {WALK: 1, RUN: 1})


def test_a_live_stream_s_captions_are_normalised_and_tokenised_once(pipeline, counted):
    with pipeline.live(WALK, fps=120) as stream:
        next(stream)
        stream.set_caption(RUN)
        while next(stream).caption != RUN:
            pass
    assert counted == ({WALK: 1, RUN: 1}, {WALK: 1, RUN: 1})


def test_a_server_s_captions_are_tokenised_once_for_all_clients_and_streams(pipeline, counted):
    async def scenario():
        hello = Hello(settings=Settings(Fraction(60), (16, 16), 3))
        async with serving(lambda settings: open_stream(pipeline, settings)) as server:
            async with talking(server, hello, WALK) as client:
                await client.hear_a(tuple)
                await client.caption(RUN)
                await client.hear_a(Showing)
                await client.say(Control("set", Settings(fps=Fraction(30))))  # a new stream of the same caption
                await client.hear_a(State)
            async with talking(server, hello, WALK) as client:
                await client.hear_a(tuple)

    asyncio.run(scenario())
    assert counted[1] == {WALK: 1, RUN: 1}


def test_encode_says_whether_the_text_stage_ran(pipeline):
    assert pipeline.encode(WALK).fresh
    again = pipeline.encode(f"  {WALK} ")
    assert not again.fresh and again.caption == WALK and not again.truncated


def test_captions_that_are_cut_are_named(pipeline):
    long = " ".join([WALK] * 8)
    assert pipeline.is_truncated(long) and not pipeline.is_truncated(WALK)
    assert pipeline.stream(WALK, then=[(1.0, long)]).truncated == (long,)
