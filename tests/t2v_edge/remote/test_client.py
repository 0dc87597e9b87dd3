"""The Python client against the live server, and against servers that misbehave; over real sockets on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from fractions import Fraction

import numpy as np
import pytest
from websockets.asyncio.server import serve

from t2v_edge.errors import ClientError, ProtocolError, UsageError
from t2v_edge.remote.async_client import AsyncClient
from t2v_edge.remote.client import Client
from t2v_edge.remote.frame import LiveFrame
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import Error, Settings, Showing, Welcome, read_client, write
from t2v_edge.server.access import Access
from t2v_edge.server.limits import Limits
from tests.t2v_edge.live_samples import DEFAULTS, TIMEOUT_S, InBackground, serving, until

TOKEN = "correct-horse-battery"
WELCOME = Welcome(1, "s", "fake", Fraction(16), DEFAULTS)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


async def some(client, count):
    """The next frames."""
    return [await client.next_frame() for _ in range(count)]


def frame_of(generation, value=0):
    return FrameHeader("raw", generation, 0, 0, Fraction(1, 30), 2, 2, 12).pack() + bytes([value]) * 12


@asynccontextmanager
async def a_server_that_says(*messages):
    """A WebSocket server that hears one message and answers with these, and then with nothing."""

    async def handle(socket):
        read_client(await socket.recv())
        for message in messages:
            await socket.send(message if isinstance(message, (str, bytes)) else write(message))
        await socket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/live"


def test_a_program_in_five_lines_shows_captions():
    with InBackground() as server:
        seen = []
        with Client.connect(server.url, fps=60) as client:
            client.caption("a person is waving")
            for frame in client.frames():
                seen.append(frame)
                if len(seen) == 5:
                    client.close()
        assert len(seen) == 5 and seen[-1].caption == "a person is waving"
        assert all(frame.pixels.shape == (6, 8, 3) and not frame.pixels.any() for frame in seen)
        assert [frame.seconds for frame in seen] == [frame.header.pts * Fraction(1, 60) for frame in seen]
        with pytest.raises(ClientError, match="is closed"):
            client.caption("too late")


def test_captions_may_come_from_another_thread_while_frames_are_shown():
    with InBackground() as server, Client.connect(server.url, format="jpeg", quality=95, size=(32, 24)) as client:

        def talk():
            for word in ("walking", "running", "dancing"):
                client.caption(f"a person is {word}")
                time.sleep(0.05)

        talker = threading.Thread(target=talk)
        talker.start()
        generations = []
        for frame in client.frames():
            generations.append(frame.header.generation)
            assert abs(int(frame.pixels.mean()) - frame.header.generation) <= 2, "JPEG may be off by a level or two"
            if frame.header.generation == 2:
                break
        talker.join()
        assert generations == sorted(generations)
        assert client.pause().paused and not client.resume().paused
        assert client.reset(9).settings.seed == 9
        assert client.set(fps="30000/1001").settings.fps == Fraction(30000, 1001)
        assert client.stats().captions == 3 and client.errors == () and client.welcome.bundle == "tiny"


def test_what_is_asked_for_is_answered_and_after_pause_no_frame_comes():
    async def scenario():
        async with serving() as server, await AsyncClient.connect(server.url) as client:
            assert client.welcome.settings == DEFAULTS
            await client.caption("a person")
            await some(client, 3)
            state = await client.pause()
            assert state.paused
            waiting = asyncio.ensure_future(client.next_frame())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await client.resume()
            assert (await waiting).header.generation == 0
            generation = (await client.set(size=(4, 4))).generation
            frame = await client.next_frame()
            assert frame.pixels.shape == (4, 4, 3) and frame.header.generation == generation
            with pytest.raises(ProtocolError, match="13x13"):
                await client.set(size=(13, 13))
            await client.caption("unreadable")
            await until(lambda: client.errors)
            assert client.errors[-1].code == "caption"
            assert (await client.stats()).captions == 2
            assert len(await some(client, 2)) == 2

    run(scenario)


def test_a_caption_that_is_not_final_is_revised_by_the_next():
    async def scenario():
        async with serving() as server, await AsyncClient.connect(server.url) as client:
            for text, final in (("a person", False), ("a person is running", True), ("a dog", True)):
                await client.caption(text, final=final)
            await until(lambda: server.made and server.made[0].caption == "a dog")
            assert client._last.segment == 1 and client._last.revision == 0
            await client.caption("a cat", segment=7, revision=2, final=False)
            await client.caption("a cat sleeps")
            assert (client._last.segment, client._last.revision) == (7, 3)

    run(scenario)


def test_a_client_that_shows_slowly_gets_the_newest_frame():
    async def scenario():
        async with serving() as server, await AsyncClient.connect(server.url) as client:
            await client.caption("a person")
            first = await client.next_frame()
            await asyncio.sleep(0.3)
            second = await client.next_frame()
            assert second.header.sequence > first.header.sequence + 3

    run(scenario)


def test_a_lost_connection_is_tried_again_with_caption_and_settings_kept():
    async def scenario():
        async with serving() as server:
            port = server.port
            client = await AsyncClient.connect(server.url, fps=60, retry_s=TIMEOUT_S)
            await client.caption("a person")
            await client.set(size=(4, 4))
            await some(client, 2)
        await client.caption("a person is dancing")  # nobody is there: it is kept
        with pytest.raises(ClientError):
            await client.stats()
        async with serving(port=port) as server:
            await until(lambda: server.made and server.made[0].caption)
            assert server.made[0].caption == "a person is dancing"
            assert server.made[0].settings == Settings(Fraction(60), (4, 4), 0, "raw", 85)
            while (await client.next_frame()).caption != "a person is dancing":
                pass
            for session in list(server._sessions):
                session._socket.transport.abort()
            await until(lambda: len(server.made) == 2 and server.made[1].caption == "a person is dancing")
            assert (await client.stats()).captions == 1
            await client.close()

    run(scenario)


def test_without_retries_the_end_is_the_end():
    async def scenario():
        async with serving() as server:
            lost, told = await AsyncClient.connect(server.url), await AsyncClient.connect(server.url)
            await told.caption("a person")
            await until(lambda: server.client_count == 2)
            sessions = sorted(server._sessions, key=lambda session: session._captions)
            sessions[0]._socket.transport.abort()
            with pytest.raises(ClientError, match="is lost"):
                await lost.next_frame()
            with pytest.raises(ClientError, match="connect again"):
                await lost.caption("anybody there")
        async for frame in told.frames():  # a server that stops ends the frames
            assert frame.header.generation == 0
        await lost.close()
        await told.close()
        await told.close()

    run(scenario)


@pytest.mark.parametrize("retry_s", [0.0, 20.0])
def test_a_wrong_token_is_not_tried_again(retry_s):
    async def scenario():
        async with serving(access=Access(token=TOKEN)) as server:
            for token in (None, "wrong"):
                with pytest.raises(ProtocolError) as refusal:
                    await AsyncClient.connect(server.url, token=token, retry_s=retry_s)
                assert refusal.value.code == "token"
            async with await AsyncClient.connect(server.url, token=TOKEN):
                pass
            with pytest.raises(ProtocolError, match="answered 404: not here"):
                await AsyncClient.connect(server.url + "/else", token=TOKEN, retry_s=retry_s)
            assert server.metrics.value("t2v_refused_total", code="token") == 2

    run(scenario)


def test_a_full_server_is_tried_again_until_there_is_room():
    async def scenario():
        async with serving(limits=Limits(clients=1)) as server:
            first = await AsyncClient.connect(server.url)
            with pytest.raises(ProtocolError) as refusal:
                await AsyncClient.connect(server.url)
            assert refusal.value.code == "capacity"
            waiting = asyncio.ensure_future(AsyncClient.connect(server.url, retry_s=TIMEOUT_S))
            await until(lambda: server.metrics.value("t2v_refused_total", code="capacity") >= 2)
            await first.close()
            await (await waiting).close()

    run(scenario)


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/live", "http://127.0.0.1/live", "nonsense"])
def test_an_address_where_nobody_is_is_said(url):
    with pytest.raises(ClientError, match="cannot be reached"):
        Client.connect(url)
    with pytest.raises(UsageError, match="fps"):
        Client.connect(url, fps="fast")


@pytest.mark.parametrize(
    "first, error, words",
    [
        ("garbage", ProtocolError, "not JSON"),
        (write(Showing(0, 0, 0, "x")), ProtocolError, "first message is a showing"),
        (write(Error("capacity", "full", "wait", True)), ProtocolError, "full; wait"),
        (frame_of(0), ProtocolError, "binary"),
        (None, ClientError, "no welcome"),
    ],
)
def test_a_server_that_does_not_welcome_is_refused(first, error, words):
    async def scenario():
        async with a_server_that_says(*([] if first is None else [first])) as url:
            with pytest.raises(error, match=words):
                await AsyncClient.connect(url, timeout_s=0.3 if first is None else TIMEOUT_S)

    run(scenario)


@pytest.mark.parametrize("message", ["garbage", b"garbage", frame_of(1)[:-1], '{"type":"state"}'])
def test_a_server_that_talks_nonsense_ends_the_session(message):
    async def scenario():
        async with a_server_that_says(WELCOME, frame_of(1), message) as url:
            client = await AsyncClient.connect(url)
            with pytest.raises(ProtocolError):
                while True:
                    assert (await client.next_frame()).header.generation == 1
            await client.close()

    run(scenario)


def test_frames_of_an_old_generation_and_messages_of_a_later_version_are_skipped():
    async def scenario():
        messages = (WELCOME, '{"type":"applause"}', frame_of(3, 3), frame_of(2, 2), write(Showing(4, 0, 0, "new")))
        async with a_server_that_says(*messages) as url:
            client = await AsyncClient.connect(url)
            await until(lambda: client._text == "new")
            frame = await client.next_frame()
            assert frame.header.generation == 3 and frame.pixels.min() == 3
            waiting = asyncio.ensure_future(client.next_frame())
            await asyncio.sleep(0.05)
            await client.close()
            assert await waiting is None

    run(scenario)


def test_a_close_frame_alone_says_why_as_well():
    async def scenario():
        async def handle(socket):
            await socket.recv()
            await socket.send(write(WELCOME))
            await socket.close(1008, "too_fast: more than 50 messages a second came")

        async with serve(handle, "127.0.0.1", 0) as server:
            client = await AsyncClient.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/live")
            with pytest.raises(ProtocolError, match="more than 50 messages") as refusal:
                await client.next_frame()
            assert refusal.value.code == "too_fast"
            await client.close()

    run(scenario)


def test_a_payload_that_is_no_picture_is_said():
    for payload in (b"no jpeg", b"\xff\xd8\xff\xe0" + bytes(100)):
        frame = LiveFrame(FrameHeader("jpeg", 0, 0, 0, Fraction(1), 8, 8, len(payload)), memoryview(payload), "")
        with pytest.raises(ClientError, match="is no jpeg of 8x8"):
            assert frame.pixels is None
    raw = LiveFrame(FrameHeader("raw", 0, 0, 0, Fraction(1), 1, 1, 3), memoryview(b"abc"), "")
    assert np.array_equal(raw.pixels, [[[97, 98, 99]]])
