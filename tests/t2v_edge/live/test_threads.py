"""Live streams among threads and event loops: closing, errors, asynchronous iteration, and a little real time."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from t2v_edge.errors import EngineError, UsageError
from t2v_edge.live.options import LiveOptions
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.model import Model
from tests.t2v_edge.live_device import DANCE, RUN, WALK, in_thread, numbers, show


async def gather(stream, count):
    found = []
    async for frame in stream:
        found.append((frame, stream._time.now()))
        if len(found) == count:
            break
    return found


# Closing and errors.


@pytest.mark.parametrize("caption", [None, WALK])
@pytest.mark.parametrize("wait", [True, False])
def test_closing_from_any_thread_ends_whoever_iterates(live, clock, caption, wait):
    stream = live(caption)
    clock.workers = 4  # time stands still, so that only closing can wake them
    if caption:
        next(stream)
        stream.pause()
    consumers = [in_thread(lambda: list(stream)) for _ in range(2)]
    in_thread(lambda: stream.close(wait))()
    assert [result() for result in consumers] == [[], []]
    stream.close()
    assert list(stream) == []
    assert stream._thread is None or not stream._thread.is_alive()
    with pytest.raises(EngineError, match="closed; make another"):
        stream.set_caption(RUN)
    with pytest.raises(EngineError, match="closed"):
        stream.reset()


def test_closing_ends_an_asynchronous_consumer(live, clock):
    stream = live()
    stream.pause()

    async def consume():
        consumer = asyncio.ensure_future(gather(stream, 100))
        await asyncio.sleep(0)
        await asyncio.to_thread(stream.close)
        return await asyncio.wait_for(consumer, 10)

    assert asyncio.run(consume()) == []


def test_what_the_stages_raise_reaches_the_consumer_and_who_sets_captions(live, device):
    stream = live()
    show(stream, 3)

    def fail(stage):
        raise EngineError(f"{stage} is broken")

    device.on_run = fail
    for _ in range(2):
        with pytest.raises(EngineError, match="is broken"):
            show(stream, 10)
    with pytest.raises(EngineError, match="is broken"):
        stream.set_caption(RUN)
    with pytest.raises(EngineError, match="is broken"):
        asyncio.run(gather(stream, 1))
    stream._thread.join(10)
    assert not stream._thread.is_alive()
    stream.close()


def test_a_stream_is_closed_with_its_pipeline(bundle_path):
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        playing, silent = pipeline.live(WALK, fps=30), pipeline.live()
        next(playing)
        waiting = in_thread(lambda: list(silent))
    assert waiting() == [] and list(playing) == []
    with pytest.raises(EngineError, match="the pipeline is closed"):
        pipeline.live(WALK)


def test_a_bad_first_caption_leaves_no_thread_behind(pipeline):
    before = threading.active_count()
    with pytest.raises(Exception, match="caption"):
        pipeline.live(" ")
    assert threading.active_count() == before


# Asynchronous iteration.


def test_an_asynchronous_consumer_gets_the_same_frames_at_the_same_times(live, device, clock):
    device.cost_s["render"] = 0.004
    stream = live()
    shown = show(stream, 50)
    clock.let_go()
    stream.close()
    clock.workers, begun = 2, clock.time
    again = asyncio.run(gather(live(), 50))
    assert numbers(again) == numbers(shown)
    for (one, at), (other, at_other) in zip(shown, again):
        assert np.array_equal(one.pixels, other.pixels)
        assert at_other - begun == pytest.approx(at - 1000, abs=1e-6)


def test_an_asynchronous_consumer_sees_pauses_and_changes(live, clock):
    stream = live()

    async def consume():
        first = await gather(stream, 5)
        stream.pause()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.05)
        stream.set_caption(RUN)
        stream.resume()
        return first, await gather(stream, 5)

    first, later = asyncio.run(consume())
    assert numbers(first + later) == list(range(10)), "a wait that was given up takes no frame with it"
    assert [{frame.generation for frame, _ in part} for part in (first, later)] == [{0}, {1}]
    assert not stream._waiters


def test_a_loop_that_is_gone_disturbs_nobody(live, clock):
    stream = live()
    loop = asyncio.new_event_loop()
    stream._waiters[loop.create_future()] = loop
    loop.close()
    assert numbers(show(stream, 3)) == [0, 1, 2] and not stream._waiters


# Options.


@pytest.mark.parametrize(
    "options, named",
    [
        ({"fps": 0.5}, "fps is 0.5"),
        ({"fps": 241}, "fps"),
        ({"fps": "fast"}, "fps"),
        ({"size": (0, 8)}, "size is 0x8"),
        ({"seed": -1}, "seed"),
        ({"blend_steps": -1}, "blend_steps"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"queue": 0}, "queue is 0"),
        ({"queue": 17}, "queue"),
        ({"policy": "newest"}, "latest, drop-oldest, block"),
        ({"ahead": -1}, "ahead"),
        ({"ahead": 17}, "ahead"),
        ({"idle_after_s": -1.0}, "idle_after_s"),
        ({"idle_after_s": float("nan")}, "idle_after_s"),
    ],
)
def test_options_out_of_range_are_named(pipeline, options, named):
    with pytest.raises(UsageError, match=named):
        pipeline.live(WALK, **options)


@pytest.mark.parametrize("bound_s", [0.0, float("nan"), 1e9])
def test_a_bound_out_of_range_is_named(bound_s):
    with pytest.raises(UsageError, match="bound_s"):
        LiveOptions(bound_s=bound_s)


def test_frames_have_the_size_and_the_rate_that_is_asked_for(live):
    stream = live(size=(8, 4), fps=None)
    assert stream.size == (8, 4) and stream.clock.fps == 16
    assert show(stream, 1)[0][0].pixels.shape == (4, 8, 3)


# Groups of frames, as a GPU renders them.


class Pairs:
    """A player that takes two frames at once, as look-ahead batches on TensorRT do."""

    def __init__(self, player) -> None:
        self._player, self.groups = player, []
        self._placed = 0
        self.rows, self.slots = 2, 1

    def __getattr__(self, name):
        return getattr(self._player, name)

    def place(self, share):
        self._placed += 1
        self._player.place(share)

    def render(self):
        self.groups.append(self._placed)
        self._placed = 0
        self._player.render()


@pytest.mark.parametrize("ahead, size", [(0, 1), (1, 2), (4, 2)])
def test_frames_are_made_in_groups_where_they_are_made_ahead(live, device, clock, monkeypatch, ahead, size):
    pairs = []

    def player(*args):
        pairs.append(Pairs(Model.player(device, *args)))
        return pairs[-1]

    monkeypatch.setattr(device, "player", player)
    device.cost_s["render"] = 0.004
    stream = live(ahead=ahead)
    shown = show(stream, 20)
    stream.set_caption(RUN)
    shown += show(stream, 20)
    assert numbers(shown) == list(range(40)) and set(pairs[0].groups) == {size}
    assert [frame.generation for frame, _ in shown] == [0] * 20 + [1] * 20
    assert stream.stats.late == 0


def test_frames_made_ahead_hide_a_slow_one(live, device, clock):
    def longest(ahead):
        clock.workers = 2
        stream = live(ahead=ahead)
        times = [show(stream, 30)[-1][1]]
        slow = iter([0.09])
        device.on_run = lambda stage: clock.work(next(slow, 0.0)) if stage == "render" else None
        times += [at for _, at in show(stream, 10)]
        device.on_run = lambda stage: None
        stream.close()
        return max(b - a for a, b in zip(times, times[1:]))

    assert longest(0) > 0.05
    assert longest(3) == pytest.approx(1 / 30, abs=1e-6)


# Real time: order and counts, no times.


def test_a_stream_plays_in_real_time(pipeline):
    with pipeline.live(WALK, fps=120) as stream:
        frames = [next(stream) for _ in range(30)]
        changed = stream.set_caption(RUN)
        frames += [next(stream) for _ in range(30)]
        stream.pause()
        stream.resume()
        frames += [next(stream) for _ in range(5)]
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert [frame.generation for frame in frames] == [0] * 30 + [changed] * 35
    stats = stream.stats
    assert stats.shown == 65 <= stats.rendered and stats.switch.count == 1
    assert stats.to_json()["dropped"].keys() == {"stale", "overtaken", "skipped", "unwatched"}


def test_streams_play_in_one_event_loop_in_real_time(pipeline):
    async def play(caption):
        with pipeline.live(caption, fps=120) as stream:
            return [frame async for frame, _ in _numbered(stream, 30)]

    async def _numbered(stream, count):
        done = 0
        async for frame in stream:
            yield frame, done
            done += 1
            if done == count:
                return

    async def main():
        return await asyncio.gather(*map(play, (WALK, RUN, DANCE)))

    for frames, caption in zip(asyncio.run(main()), (WALK, RUN, DANCE)):
        assert len(frames) == 30 and {frame.caption for frame in frames} == {caption}
        assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})


def test_captions_and_control_from_many_threads_at_once_break_nothing(pipeline):
    with pipeline.live(WALK, fps=240, queue=1, idle_after_s=0.001, ahead=1) as stream:
        over = threading.Event()

        def disturb(work):
            def run():
                while not over.is_set():
                    work()

            return in_thread(run)

        captions = iter([WALK, RUN, DANCE] * 10**6)
        disturbing = [
            disturb(work)
            for work in (
                lambda: stream.set_caption(next(captions)),
                stream.pause,
                stream.resume,
                lambda: stream.stats,
                lambda: stream.reset(7),
            )
        ]
        consumer = in_thread(lambda: [(frame.index, frame.generation) for frame in stream])
        threading.Event().wait(0.5)
        over.set()
        for result in disturbing:
            result()
        stream.resume()
        while stream.stats.shown < 1:
            threading.Event().wait(0.001)
        stream.close()
        found = consumer()
    assert found == sorted(set(found)), "numbers rise, generations never fall"
    assert len({index for index, _ in found}) == len(found)


def test_the_default_options_are_those_of_the_class(pipeline):
    with pipeline.live() as made:
        assert made.options == LiveOptions()
