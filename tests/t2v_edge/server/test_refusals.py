"""What the live server refuses and cleans up, over real sockets, while another client's stream goes on."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import replace

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from t2v_edge.errors import ServerError, UsageError
from t2v_edge.remote.protocol import MAX_MESSAGE_BYTES, Caption, Error, Hello, Settings, write
from t2v_edge.server.access import Access, open_tls, read_token
from t2v_edge.server.limits import Limits, RateLimit
from tests.t2v_edge.live_samples import (
    DIRECT,
    TIMEOUT_S,
    Talker,
    a_neighbour,
    fetch,
    knock,
    make_certificate,
    masked,
    needs_openssl,
    serving,
    talking,
    until,
)

TOKEN = "correct-horse-battery"
WITH_TOKEN = {"access": Access(token=TOKEN)}


async def the_end(client):
    """The errors a client hears before its connection is closed, and the close code."""
    errors = []
    try:
        while True:
            message = await client.hear()
            if isinstance(message, Error):
                errors.append(message)
    except ConnectionClosed:
        return errors, client.socket.protocol.close_code


@pytest.mark.parametrize(
    "message, code, close_code",
    [
        ("x" * (MAX_MESSAGE_BYTES + 1), None, 1009),
        ("garbage", "bad_message", 1007),
        ('{"type":"caption","segment":1e999}', "bad_message", 1007),
        (b"\x00\xff" * 20, "binary", 1003),
        (write(Hello()), "hello", 1008),
    ],
    ids=["oversized", "garbage", "infinite", "binary", "second hello"],
)
def test_what_is_no_message_ends_the_session_that_sent_it(message, code, close_code):
    async def scenario():
        async with serving() as server, a_neighbour(server), talking(server, text="a person") as client:
            await client.say(message)
            errors, closed = await the_end(client)
            assert [error.code for error in errors] == ([] if code is None else [code])
            assert all(error.fatal and error.remedy for error in errors)
            assert closed == close_code
            await until(lambda: server.client_count == 1)
            assert [stream.closed for stream in server.made] == [False, True]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "hello, code, close_code",
    [
        (write(Caption(0, 0, "first")), "hello", 1008),
        ("hello", "bad_message", 1007),
        ('{"type":"hello","versions":[7,9]}', "version", 1002),
        ('{"type":"hello","versions":[]}', "bad_value", 1008),
        (write(Hello(settings=Settings(size=(13, 13)))), "bad_value", 1008),
        (write(Hello(token="wrong")), "token", 1008),
        (write(Hello(token=TOKEN[:-1])), "token", 1008),
        (write(Hello()), "token", 1008),
    ],
    ids=["caption", "garbage", "version", "no version", "size", "wrong token", "short token", "no token"],
)
def test_a_hello_that_cannot_be_taken_is_refused(hello, code, close_code):
    options = WITH_TOKEN if code == "token" else {}

    async def scenario():
        async with serving(**options) as server, a_neighbour(server, Hello(token=TOKEN)):
            async with connect(server.url, **DIRECT) as sock:
                client = Talker(sock)
                await client.say(hello)
                errors, closed = await the_end(client)
            assert [(error.code, error.fatal) for error in errors] == [(code, True)] and closed == close_code
            assert server.metrics.value("t2v_refused_total", code=code) == 1
            assert server.client_count == 1

    asyncio.run(scenario())


def test_a_token_in_the_request_is_as_good_and_a_wrong_one_gets_no_socket():
    async def scenario():
        async with serving(**WITH_TOKEN) as server, a_neighbour(server, Hello(token=TOKEN)):
            async with talking(server, additional_headers={"Authorization": f"Bearer {TOKEN}"}):
                pass
            for bearer in ("Bearer wrong", "Basic " + TOKEN, TOKEN):
                with pytest.raises(InvalidStatus) as refusal:
                    async with talking(server, Hello(token=TOKEN), additional_headers={"Authorization": bearer}):
                        pass
                assert refusal.value.response.status_code == 401
            assert (await fetch(server, "/metrics"))[0] == 401
            assert (await fetch(server, "/metrics", [f"Authorization: Bearer {TOKEN}"]))[0] == 200
            assert (await fetch(server, "/healthz"))[0] == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "origin, allowed",
    [
        ("http://127.0.0.1:{port}", True),
        ("https://127.0.0.1:{port}", True),
        ("https://app.example", True),
        ("http://127.0.0.1:1", False),
        ("http://app.example", False),
        ("https://app.example.evil", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_only_the_servers_own_pages_and_listed_ones_may_connect(origin, allowed):
    async def scenario():
        async with serving(access=Access(origins=("https://app.example",))) as server, a_neighbour(server):
            head = f"Origin: {origin.format(port=server.port)}"
            _, writer, answer = await knock(server, headers=[head])
            assert answer.split()[1] == ("101" if allowed else "403")
            writer.close()

    asyncio.run(scenario())


def test_a_name_that_points_here_is_a_strangers_page_until_it_is_listed():
    own = Access()
    assert own.allows_origin("http://localhost:8765", "localhost:8765")
    assert own.allows_origin("http://[::1]:8765", "[::1]:8765")
    assert not own.allows_origin("http://evil.example:8765", "evil.example:8765")
    assert Access(origins=("http://evil.example:8765",)).allows_origin("http://evil.example:8765", "evil.example:8765")
    assert not own.allows_origin("http://localhost:8765", None)
    assert not own.allows_origin("http://localhost:99999999", "localhost:99999999")


def test_bytes_that_are_no_request_are_cut_off():
    async def scenario():
        async with serving(limits=Limits(hello_s=5)) as server, a_neighbour(server):
            for garbage in (
                b"\x16\x03\x01\x02\x00" + bytes(range(256)),
                b"\n" * 100,
                b"GET / HTTP/9\r\n\r\n",
                b"POST /live HTTP/1.1\r\n\r\n",
                b"GET /live HTTP/1.1\r\nX: " + b"y" * 100_000,
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(garbage)
                try:
                    answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
                except ConnectionResetError:
                    answer = b""
                assert b" 101 " not in answer
                writer.close()
            reader, writer, _ = await knock(server)
            writer.write(b"\xff" * 50)
            await asyncio.wait_for(reader.read(), TIMEOUT_S)
            writer.close()
            await until(lambda: server.waiting_count == 0)

    asyncio.run(scenario())


def test_sockets_that_stay_half_open_are_closed():
    async def scenario():
        limits = Limits(hello_s=0.3, ping_s=0.2, stop_s=0.5)
        async with serving(limits=limits) as server, a_neighbour(server):
            mute = await asyncio.open_connection("127.0.0.1", server.port)
            shy = await knock(server)
            dead = await knock(server)  # says hello and never answers a ping
            dead[1].write(masked('{"type":"hello","versions":[1]}'))
            await until(lambda: server.client_count == 2)
            for reader, *_ in (mute, shy, dead):
                await asyncio.wait_for(reader.read(), TIMEOUT_S)
            await until(lambda: server.client_count == 1 and server.waiting_count == 0)
            assert [stream.closed for stream in server.made] == [False, True]
            assert server.metrics.value("t2v_refused_total", code="hello") == 1

    asyncio.run(scenario())


def test_a_client_that_vanishes_leaves_nothing():
    async def scenario():
        async with serving() as server, a_neighbour(server):
            for moment in ("hello", "caption", "control"):
                async with connect(server.url, **DIRECT) as sock:
                    client = Talker(sock)
                    await client.say(Hello())
                    if moment != "hello":
                        await client.caption("a person")
                    if moment == "control":
                        await client.say('{"type":"control","action":"set","fps":50}')
                    sock.transport.abort()
            await until(lambda: server.client_count == 1)
            await until(lambda: all(stream.closed for stream in server.made[1:]))

    asyncio.run(scenario())


def test_at_capacity_clients_are_told_so_and_a_free_place_is_given_again():
    async def scenario():
        async with serving(limits=Limits(clients=2)) as server, a_neighbour(server):
            first, second = await connect(server.url, **DIRECT), await connect(server.url, **DIRECT)
            await first.send(write(Hello()))
            await until(lambda: server.client_count == 2)
            late = Talker(second)  # it was let in before the place was taken
            await late.say(Hello())
            errors, closed = await the_end(late)
            assert [error.code for error in errors] == ["capacity"] and closed == 1013
            _, writer, answer = await knock(server)
            assert answer.split()[1] == "503" and "Retry-After: 5" in answer
            writer.close()
            await first.close()
            await until(lambda: server.client_count == 1)
            async with talking(server, text="a person") as client:
                await client.frames(1)

    asyncio.run(scenario())


def test_a_client_that_reads_nothing_loses_its_own_frames_and_is_cut_off():
    async def scenario():
        big = Hello(settings=Settings(size=(640, 480)))
        async with serving(limits=Limits(stall_s=1.0)) as server, a_neighbour(server) as neighbour:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
            slow = await connect(server.url, **DIRECT, sock=sock, max_queue=1, ping_interval=None)
            await slow.send(write(big))
            await slow.send(write(Caption(0, 0, "a person")))
            await until(lambda: server.client_count == 2 and server.made[1].caption is not None)
            sessions = sorted(server._sessions, key=lambda session: session.counts[0])
            lagging = next(session for session in sessions if session._playback.settings.size == (640, 480))
            await until(lambda: lagging.counts[0] > 20)
            assert lagging.counts[1] >= lagging.counts[0] - 5, "of its frames all but a few are dropped"
            assert lagging.depths["send"] + lagging.depths["encode"] <= 2
            assert lagging._socket.transport.get_write_buffer_size() < 2 * 640 * 480 * 3
            await neighbour.frames(20)
            await until(lambda: server.client_count == 1)
            assert server.metrics.value("t2v_refused_total", code="too_slow") == 1
            slow.transport.abort()

    asyncio.run(scenario())


def test_a_client_that_asks_and_never_reads_is_cut_off_before_the_answers_fill_the_memory():
    async def scenario():
        limits = Limits(messages_per_s=1e6, burst=10**6, stall_s=300)
        async with serving(limits=limits) as server, a_neighbour(server):
            reader, writer, _ = await knock(server)
            reader._transport.pause_reading()
            writer.write(masked('{"type":"hello","versions":[1]}'))
            ask = masked('{"type":"stats"}')
            try:
                for _ in range(400):
                    writer.write(ask * 500)
                    await asyncio.wait_for(writer.drain(), 1)
            except (ConnectionError, asyncio.TimeoutError):
                pass
            await until(lambda: server.client_count == 1)
            assert server.metrics.value("t2v_refused_total", code="too_slow") == 1
            writer.close()

    asyncio.run(scenario())


def test_a_flood_of_captions_ends_the_session_that_sends_it():
    async def scenario():
        async with serving() as server, a_neighbour(server), talking(server) as client:
            flood = [client.say(Caption(segment, 0, f"a person {segment}")) for segment in range(1000)]
            results = await asyncio.gather(*flood, return_exceptions=True)
            assert all(result is None or isinstance(result, ConnectionClosed) for result in results)
            errors, closed = await the_end(client)
            assert [error.code for error in errors] == ["too_fast"] and closed == 1008
            assert server.made[1].generation < 30, "few of them reached the text stage"

    asyncio.run(scenario())


def test_who_sends_too_much_keeps_its_own_place_taken_for_a_while():
    async def scenario():
        async with serving(limits=Limits(clients=2, penalty_s=0.5)) as server, a_neighbour(server):
            async with talking(server) as client:
                for segment in range(100):
                    await client.say(Caption(segment, 0, f"a person {segment}"))
                await until(lambda: len(server.made) == 2 and server.made[1].closed)
                assert server.client_count == 2 and (await knock(server))[2].split()[1] == "503"
                errors, _ = await the_end(client)
                assert [error.code for error in errors] == ["too_fast"]
            await until(lambda: server.client_count == 1)

    asyncio.run(scenario())


def test_a_stream_that_breaks_ends_its_own_session():
    async def scenario():
        async with serving() as server, a_neighbour(server), talking(server, text="a person") as client:
            await client.caption("broken")
            errors, closed = await the_end(client)
            assert [error.code for error in errors] == ["internal"] and closed == 1011
            assert "burns" not in errors[0].message, "what is inside stays inside"

    asyncio.run(scenario())


def test_a_server_stops_in_time_though_a_client_does_not_listen():
    async def scenario():
        async with serving(limits=Limits(stop_s=0.3, stall_s=60)) as server:
            reader, writer, _ = await knock(server)
            reader._transport.pause_reading()
            writer.write(masked('{"type":"hello","versions":[1],"size":[640,480]}'))
            writer.write(masked('{"type":"caption","segment":0,"revision":0,"text":"a person"}'))
            await until(lambda: server.made and server.made[0].caption is not None)
            await asyncio.sleep(0.3)
        assert server.made[0].closed and server.client_count == 0
        writer.close()

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT_S))


def test_a_server_that_others_can_reach_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", ""):
        with pytest.raises(UsageError, match="there is no token"):
            Access(host)
        Access(host, TOKEN)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        Access(host)
    for token in ("short", "has a space in it yes", "ünïcödé-is-no-ascii", "x" * 513):
        with pytest.raises(UsageError, match="the token has"):
            Access(token=token)
    for origin in ("app.example", "https://app.example/", "ftp://app.example", "https://", "https://u@app.example"):
        with pytest.raises(UsageError, match="is no origin"):
            Access(origins=(origin,))


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("T2V_EDGE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("T2V_EDGE_TOKEN", "from-the-environment")
    assert read_token(None) == "from-the-environment"
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN
    path.write_text("x" * 2000)
    with pytest.raises(ServerError, match="too long"):
        read_token(path)
    for bad in (tmp_path / "absent", tmp_path):
        with pytest.raises(ServerError, match="too long|cannot be read"):
            read_token(bad)


@needs_openssl
def test_over_tls_the_same_is_said(tmp_path):
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))

    async def scenario():
        tls = open_tls(certificate, key)
        async with serving(tls=tls) as server, talking(server, text="a person", ssl=trust) as client:
            await client.frames(2)
            assert server.url.startswith("wss://")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert b"200" not in await asyncio.wait_for(reader.read(), TIMEOUT_S)
            writer.close()

    asyncio.run(scenario())
    for bad in ((None, key), (key, None), (certificate, certificate), (tmp_path / "absent", None)):
        with pytest.raises((ServerError, UsageError), match="tls-cert"):
            open_tls(*bad)


def test_a_rate_is_a_burst_and_then_so_many_a_second():
    rate = RateLimit(4, 3, 100.0)
    assert [rate.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [rate.take(100.25), rate.take(100.25), rate.take(99.0)] == [True, False, False]
    assert [rate.take(200.0) for _ in range(4)] == [True, True, True, False]
    with pytest.raises(UsageError, match="clients is 0"):
        replace(Limits(), clients=0)
