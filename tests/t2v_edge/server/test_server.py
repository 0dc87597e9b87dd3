"""What clients of the live server get: over real sockets on loopback, with streams that are made up."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from fractions import Fraction

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from t2v_edge.errors import ServerError
from t2v_edge.remote.protocol import Bye, Caption, Control, Error, Hello, Settings, Showing, State, Stats, StatsRequest
from t2v_edge.server import session
from t2v_edge.server.encode import encode
from t2v_edge.server.limits import Limits
from t2v_edge.server.sockets import UNSENT_BYTES
from tests.t2v_edge.live_samples import DEFAULTS, TIMEOUT_S, fetch, knock, masked, serving, talking, until


def test_a_caption_becomes_frames_of_its_generation():
    async def scenario():
        async with serving() as server, talking(server) as client:
            assert client.welcome.bundle == "tiny" and client.welcome.base_fps == 16
            assert client.welcome.settings == DEFAULTS
            await client.caption("a person is walking")
            showing = await client.hear_a(Showing)
            assert showing == Showing(0, 0, 0, "a person is walking")
            header, payload = await client.hear_a(tuple)
            assert (header.format, header.width, header.height) == ("raw", 8, 6)
            assert header.time_base == Fraction(1, 100) and header.generation == 0
            assert bytes(payload) == bytes(8 * 6 * 3)
            assert threading.main_thread() not in server.made[0].threads, "the text stage does not block the loop"
        assert server.made[0].closed

    asyncio.run(scenario())


def test_after_a_switch_no_frame_of_an_old_generation_comes():
    async def scenario():
        async with serving() as server, talking(server) as client:
            for generation in range(30):
                await client.caption(f"a person {generation}")
                assert (await client.hear_a(Showing)).generation == generation
                for header, payload in await client.frames(2):
                    assert header.generation == generation and payload[0] == generation

    asyncio.run(scenario())


def test_partial_captions_that_say_nothing_new_are_not_encoded_anew():
    async def scenario():
        async with serving() as server, talking(server) as client:
            for revision, text in enumerate(("a", "a person", "a person is", "a person is", "A person is running")):
                await client.say(Caption(0, revision, text, False))
            await client.say(Caption(0, 1, "stale", False))
            texts = []
            while "A person is running" not in texts:
                texts.append((await client.hear_a(Showing)).text)
            assert len(texts) <= 2 and server.made[0].generation == len(texts) - 1

    asyncio.run(scenario())


def test_after_pause_is_answered_no_frame_comes_until_resume():
    async def scenario():
        async with serving() as server, talking(server, text="a person") as client:
            await client.frames(2)
            await client.say(Control("pause"))
            assert (await client.hear_a(State)).paused
            await client.say(StatsRequest())
            assert isinstance(await client.hear(), Stats)
            await asyncio.sleep(0.1)
            await client.say(StatsRequest())
            assert isinstance(await client.hear(), Stats), "and no frame"
            await client.say(Control("resume"))
            assert not (await client.hear_a(State)).paused
            await client.frames(2)

    asyncio.run(scenario())


@pytest.mark.parametrize("change", ["caption", "pause", "reset", "size"])
def test_a_frame_that_is_encoded_while_things_change_is_not_sent(monkeypatch, change):
    def encode_slowly(pixels, kind, quality):
        time.sleep(0.03)  # three frames long: one is always being encoded
        return encode(pixels, kind, quality)

    monkeypatch.setattr(session, "encode", encode_slowly)

    async def scenario():
        async with serving() as server, talking(server, text="a person") as client:
            for turn in range(5):
                await client.frames(2)
                if change == "caption":
                    await client.caption(f"a person {turn}")
                    generation = (await client.hear_a(Showing)).generation
                else:
                    wanted = Settings(size=(8 + turn % 2, 6))
                    await client.say(Control("set", wanted) if change == "size" else Control(change))
                    generation = (await client.hear_a(State)).generation
                if change == "pause":
                    await client.say(StatsRequest())
                    await asyncio.sleep(0.1)
                    assert isinstance(await client.hear(), Stats)
                    await client.say(Control("resume"))
                    await client.hear_a(State)
                assert (await client.hear_a(tuple))[0].generation == generation

    asyncio.run(scenario())


def test_set_changes_format_at_once_and_rate_and_size_by_a_new_stream():
    async def scenario():
        async with serving() as server, talking(server, text="a person") as client:
            await client.say(Control("set", Settings(format="jpeg", quality=40)))
            state = await client.hear_a(State)
            assert (state.settings.format, state.settings.quality, state.generation) == ("jpeg", 40, 0)
            while (frame := await client.hear_a(tuple))[0].format != "jpeg":
                pass
            assert cv2.imdecode(np.frombuffer(frame[1], np.uint8), cv2.IMREAD_COLOR).shape == (6, 8, 3)
            await client.say(Control("set", Settings(fps=Fraction(60000, 1001), size=(4, 2), format="webp")))
            state = await client.hear_a(State)
            assert state.settings == Settings(Fraction(60000, 1001), (4, 2), 0, "webp", 40) and state.generation == 1
            header, _ = await client.hear_a(tuple)
            assert (header.generation, header.width, header.time_base) == (1, 4, Fraction(1001, 60000))
            assert [stream.closed for stream in server.made] == [True, False]
            assert server.made[1].caption == "a person"
            await client.say(Control("reset", Settings(seed=7)))
            state = await client.hear_a(State)
            assert (state.generation, state.settings.seed) == (2, 7) and len(server.made) == 2
            assert (await client.hear_a(tuple))[0].generation == 2

    asyncio.run(scenario())


def test_what_cannot_be_done_is_answered_and_the_session_goes_on():
    async def scenario():
        async with serving() as server, talking(server, text="a person") as client:
            for message, code in (
                (Control("set", Settings(size=(13, 13))), "bad_value"),
                ('{"type":"dance"}', "unknown_type"),
                ('{"type":"control","action":"set","fps":0}', "bad_value"),
            ):
                await client.say(message)
                error = await client.hear_a(Error)
                assert error.code == code and error.remedy and not error.fatal
            await client.caption("unreadable")
            error = await client.hear_a(Error)
            assert (error.code, error.message, error.remedy) == ("caption", "the caption has no tokens", "reword it")
            await client.frames(2)
            await client.say(StatsRequest())
            stats = await client.hear_a(Stats)
            assert stats.captions == 2 and stats.sent > 0 and stats.latency_ms > 0

    asyncio.run(scenario())


def test_a_client_that_asks_in_hello_gets_its_settings_and_says_goodbye():
    async def scenario():
        async with serving() as server, talking(server, Hello(settings=Settings(Fraction(50), (10, 10)))) as client:
            assert client.welcome.settings == Settings(Fraction(50), (10, 10), 0, "raw", 85)
            await client.say(Bye("done"))
            assert isinstance(await client.hear_a(Bye), Bye)
            await asyncio.wait_for(client.socket.wait_closed(), TIMEOUT_S)
            assert client.socket.protocol.close_code == 1000
            await until(lambda: server.made[0].closed)

    asyncio.run(scenario())


def test_a_server_that_stops_says_goodbye_to_all():
    async def listen(client):
        assert (await client.hear_a(Bye)).reason == "the server stops"
        with pytest.raises(ConnectionClosed):
            await client.frames(1)
        assert client.socket.protocol.close_code == 1001

    async def scenario():
        async with serving() as server:
            opened = [talking(server, text="a person") for _ in range(3)]
            clients = [await one.__aenter__() for one in opened]
            listening = [asyncio.ensure_future(listen(client)) for client in clients]
            await asyncio.wait_for(server.__aexit__(None, None, None), TIMEOUT_S)
            await asyncio.gather(*listening)
            assert all(stream.closed for stream in server.made)
            for one in opened:
                await one.__aexit__(None, None, None)

    asyncio.run(scenario())


def test_health_and_metrics_are_plain_http():
    async def scenario():
        async with serving(limits=Limits(clients=3)) as server, talking(server, text="a person") as client:
            await client.frames(5)
            await client.say('{"type":"dance"}')
            await client.hear_a(Error)
            assert (await fetch(server, "/healthz"))[::2] == (200, "ok\n")
            status, head, body = await fetch(server, "/metrics?x=1")
            assert status == 200 and head.count("Content-Type: ") == head.count("text/plain; version=0.0.4") == 1
            assert (await fetch(server, "/elsewhere"))[0] == 404
            assert (await fetch(server, "/live"))[0] in (400, 426), "a plain GET opens no WebSocket"
            return body

    body = asyncio.run(scenario())
    sample = re.compile(r'[a-z_0-9]+(\{[a-z]+="[a-z_0-9.]+"(,[a-z]+="[a-z_0-9.]+")*\})? [0-9.e+-]+')
    lines = body.splitlines()
    assert all(sample.fullmatch(line) or re.match("# (HELP|TYPE) ", line) for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values["t2v_clients"] == "1" and values["t2v_sessions_total"] == "1"
    assert values["t2v_captions_total"] == "1" and values['t2v_refused_total{code="unknown_type"}'] == "1"
    assert int(values["t2v_frames_sent_total"]) >= 5 and float(values["t2v_fps"]) > 0
    assert {f't2v_queue_depth{{stage="{stage}"}}' for stage in ("text", "render", "encode", "send")} <= values.keys()
    assert values['t2v_quality_clients{divisor="1"}'] == "1"
    assert float(values["process_resident_memory_bytes"]) > 1 << 20
    for stage in ("caption", "encode", "send"):
        assert float(values[f't2v_latency_ms{{stage="{stage}",quantile="0.95"}}']) >= 0
        assert int(values[f't2v_latency_ms_count{{stage="{stage}"}}']) >= 1


def test_captions_that_come_fast_are_taken_one_in_a_while_the_newest(monkeypatch):
    monkeypatch.setattr(session, "TAKE_S", 0.3)

    async def scenario():
        async with serving() as server, talking(server) as client:
            for number in range(20):
                await client.caption(f"a person {number}")
                await asyncio.sleep(0.01)
            taken = [(await client.hear_a(Showing)).segment]
            while taken[-1] != 19:
                taken.append((await client.hear_a(Showing)).segment)
            assert len(taken) <= 4, "one each third of a second, where all came in one"

    asyncio.run(scenario())


def test_for_a_client_that_does_not_read_no_frames_are_made_until_it_does(monkeypatch):
    monkeypatch.setattr(session, "SLOW_S", 0.1)

    async def scenario():
        async with serving(limits=Limits(stall_s=60)) as server:
            reader, writer, _ = await knock(server)
            reader._transport.pause_reading()
            writer.write(masked('{"type":"hello","versions":[1],"size":[1024,1024]}'))
            writer.write(masked('{"type":"caption","segment":0,"revision":0,"text":"a person"}'))
            await until(lambda: server._sessions and not next(iter(server._sessions))._reads.is_set())
            stuck = next(iter(server._sessions))
            before = stuck.counts[0]
            await asyncio.sleep(0.3)
            assert stuck.counts[0] <= before + 1, "thirty frames would have been made"
            reader._transport.resume_reading()
            reading = asyncio.ensure_future(_read_all(reader))
            await until(lambda: stuck.counts[0] > before + 10)
            reading.cancel()
            writer.close()

    asyncio.run(scenario())


async def _read_all(reader):
    while await reader.read(1 << 20):
        pass


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system cannot be told")
def test_the_kernel_is_told_to_keep_little_for_a_client():
    async def scenario():
        async with serving() as server, talking(server):
            for one in server._sessions:
                kernel = one._socket.transport.get_extra_info("socket")
                assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
                assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_said():
    async def scenario():
        async with serving() as server:
            server.options = type(server.options)(DEFAULTS, port=server.port)
            with pytest.raises(ServerError, match="cannot be bound"):
                await server.__aenter__()

    asyncio.run(scenario())


def test_a_client_may_reconnect_as_often_as_it_likes_and_nothing_is_left():
    async def scenario():
        async with serving(limits=Limits(clients=1)) as server:
            for _ in range(5):
                async with talking(server, text="a person") as client:
                    await client.frames(1)
                await until(lambda: all(stream.closed for stream in server.made))
                await until(lambda: server.client_count == 0)
            assert server.metrics.value("t2v_sessions_total") == 5

    asyncio.run(scenario())
