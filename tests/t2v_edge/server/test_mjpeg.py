"""MJPEG over HTTP, beside the WebSocket: what readers get and what is refused, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from fractions import Fraction
from urllib.parse import quote

import cv2
import pytest

from t2v_edge.cli import main
from t2v_edge.errors import ProtocolError, ServerError
from t2v_edge.remote.protocol import Hello, Settings
from t2v_edge.server.access import Access, open_tls
from t2v_edge.server.limits import Limits
from t2v_edge.server.mjpeg.listener import read_query
from t2v_edge.server.mjpeg.request import MAX_HEAD_BYTES, parse_head
from tests.t2v_edge.commands.test_serve import start_server
from tests.t2v_edge.live_samples import (
    TIMEOUT_S,
    InBackground,
    a_neighbour,
    make_certificate,
    needs_openssl,
    serving,
    talking,
    until,
)
from tests.t2v_edge.mjpeg_samples import PERSON, Noise, Paced, asking, mjpeg, post, read_part, refused
from tests.t2v_edge.server.test_refusals import TOKEN, WITH_TOKEN


def test_a_reader_gets_the_captions_frames_as_parts():
    async def scenario():
        async with mjpeg() as server, a_neighbour(server):
            path = f"/stream.mjpg?caption={quote('一个人')}&fps=50&size=32x24&seed=7&quality=90&name=wall"
            async with asking(server, path) as (reader, status, head):
                assert status == 200 and "multipart/x-mixed-replace; boundary=t2v-edge-frame" in head
                assert "X-Stream-Name: wall" in head and "Cross-Origin-Resource-Policy: same-origin" in head
                times = []
                for _ in range(4):
                    headers, picture = await read_part(reader)
                    assert headers["Content-Type"] == "image/jpeg" and picture.shape == (24, 32, 3)
                    times.append(float(headers["X-Timestamp"]))
                assert times == sorted(set(times)) and all(round(t * 50, 3).is_integer() for t in times)
                assert server.made[1].settings == Settings(Fraction(50), (32, 24), 7, "jpeg", 90)
                assert server.made[1].caption == "一个人"
                assert server.client_count == 2, "a reader is a client"
            await until(lambda: server.client_count == 1 and server.made[1].closed)

    asyncio.run(scenario())


def test_a_posted_caption_changes_the_picture_and_no_old_frame_comes_behind_a_new_one():
    async def scenario():
        async with mjpeg() as server, asking(server, PERSON + "&name=wall") as (reader, _, _):
            generations = []
            for turn in range(4):
                assert await post(server, "wall", f"a person {turn}") == 202
                while True:
                    headers, picture = await read_part(reader)
                    generations.append(int(headers["X-Generation"]))
                    assert abs(int(picture.mean()) - (40 * generations[-1] + 20)) < 8
                    if generations[-1] == turn + 1:
                        break
            assert generations == sorted(generations)
            assert await post(server, "other", "a person") == 404
            assert await post(server, "wall", "  ") == 400
            assert await post(server, "wall", "x" * 2049) == 400
            assert (await refused(server, "/caption?name=wall", method="POST", body=b"\xff\xfe"))[0] == 400
            await read_part(reader)

    asyncio.run(scenario())


def test_without_a_caption_the_answer_begins_and_frames_come_with_the_first_post():
    async def scenario():
        async with mjpeg() as server, asking(server, "/stream.mjpg?name=wall") as (reader, status, _):
            assert status == 200
            assert await post(server, "wall", "a person") == 202
            assert (await read_part(reader))[0]["X-Generation"] == "0"
            again = await refused(server, PERSON + "&name=wall")
            assert again[0] == 409 and "another name" in again[1]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "path, status, words",
    [
        ("/stream.mjpg?caption=unreadable", 400, "reword it"),
        ("/stream.mjpg?size=13x13", 400, "take another"),
        ("/stream.mjpg?size=9x", 400, "WIDTHxHEIGHT"),
        ("/stream.mjpg?size=9999x9", 400, "1 to 4096"),
        ("/stream.mjpg?fps=0", 400, "1 to 240"),
        ("/stream.mjpg?fps=1e9", 400, "1 to 240"),
        ("/stream.mjpg?seed=-1", 400, "whole number"),
        ("/stream.mjpg?quality=101", 400, "1 to 100"),
        ("/stream.mjpg?name=a/b", 400, "letters"),
        ("/stream.mjpg?cation=x", 400, "use caption"),
        ("/stream.mjpg?caption=%20", 400, "send 1 to"),
        ("/stream.mjpg?caption=%ff", 400, "escaped"),
        ("/stream.mjpg?fps=1&fps=2", 400, "once"),
        ("/", 404, "/stream.mjpg"),
        ("/live", 404, "/stream.mjpg"),
        ("/caption", 405, "send POST"),
        (f"/stream.mjpg?token={TOKEN}", 401, "Authorization: Bearer"),
    ],
)
def test_what_cannot_be_served_has_a_status_and_a_remedy(path, status, words):
    async def scenario():
        async with mjpeg() as server, a_neighbour(server):
            found = await refused(server, path)
            assert found[0] == status and words in found[1]
            await until(lambda: server.client_count == 1)

    asyncio.run(scenario())


def test_a_text_stage_that_takes_long_does_not_leave_a_reader_without_an_answer():
    read_on = threading.Event()

    class Slow(Paced):
        def set_caption(self, caption):
            assert read_on.wait(TIMEOUT_S)
            return super().set_caption(caption)

    async def scenario():
        async with mjpeg(Slow, limits=Limits(hello_s=0.4)) as server, asking(server, PERSON) as (reader, status, _):
            assert status == 200 and server.made[0].caption is None
            read_on.set()
            await read_part(reader)

    asyncio.run(scenario())


def test_the_token_is_taken_from_the_header_alone():
    right = [f"Authorization: Bearer {TOKEN}"]

    async def scenario():
        async with mjpeg(**WITH_TOKEN) as server, a_neighbour(server, Hello(token=TOKEN)):
            for headers in (
                [],
                ["Authorization: Bearer wrong"],
                [f"Authorization: Basic {TOKEN}"],
                [f"Authorization: {TOKEN}"],
                [f"Cookie: token={TOKEN}"],
            ):
                assert (await refused(server, PERSON, headers))[0] == 401
            assert (await refused(server, f"{PERSON}&token={TOKEN}", right))[0] == 401
            async with asking(server, PERSON + "&name=wall", right) as (reader, status, _):
                assert status == 200
                await read_part(reader)
                assert await post(server, "wall", "a person 2") == 401
                assert await post(server, "wall", "a person 2", right) == 202
            assert server.metrics.value("t2v_refused_total", code="token") == 7

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "headers, allowed",
    [
        (["Sec-Fetch-Site: none"], True),
        (["Sec-Fetch-Site: same-origin"], True),
        (["Sec-Fetch-Site: cross-site"], False),
        (["Sec-Fetch-Site: same-site"], False),
        (["Origin: https://app.example", "Sec-Fetch-Site: cross-site"], True),
        (["Origin: https://evil.example"], False),
        (["Origin: null"], False),
        (["Origin: https://app.example", "Origin: https://evil.example"], False),
    ],
    ids=str,
)
def test_strangers_pages_may_not_embed_the_stream_nor_post_captions(headers, allowed):
    async def scenario():
        async with mjpeg(access=Access(origins=("https://app.example",))) as server, a_neighbour(server):
            async with asking(server, PERSON + "&name=wall") as (reader, _, _):
                await read_part(reader)
                assert (await post(server, "wall", "a person 2", headers) == 202) == allowed
            async with asking(server, PERSON, headers) as (_, status, head):
                assert (status == 200) == allowed
                assert ("Access-Control-Allow-Origin: https://app.example" in head) == (
                    allowed and "app.example" in headers[0]
                )

    asyncio.run(scenario())


def test_a_strangers_name_that_points_here_is_no_page_of_ours():
    async def scenario():
        async with mjpeg() as server:
            for host, status in (("evil.example", "403"), ("localhost", "200"), ("[::1]", "200")):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.mjpeg.port)
                writer.write(f"GET {PERSON} HTTP/1.1\r\nHost: {host}:1\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode())
                assert (await asyncio.wait_for(reader.readline(), TIMEOUT_S)).decode().split()[1] == status
                writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "garbage, statuses",
    [
        (b"\x16\x03\x01\x02\x00" + bytes(range(256)) + b"\r\n\r\n", {400}),
        (b"\n" * 100, set()),
        (b"GET / HTTP/9\r\n\r\n", {400}),
        (b"GET /stream.mjpg HTTP/1.1\r\nX: " + b"y" * 100_000, {413}),
        (b"GET /stream.mjpg HTTP/1.1\r\nNo header\r\n\r\n", {400}),
        (b"GET http://x/stream.mjpg HTTP/1.1\r\n\r\n", {400}),
        (b"GET /stream.mjpg HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", {400}),
        (b"GET /stream.mjpg HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", {413}),
        (b"POST /caption?name=a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", {400}),
        (b"POST /caption?name=a HTTP/1.1\r\n\r\n", {400}),
        (b"POST /caption?name=a HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", {413}),
        (b"POST /caption?name=a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", {400}),
        (b"POST /caption?name=a HTTP/1.1\r\nContent-Length: 50\r\n\r\nshort", set()),
    ],
)
def test_bytes_that_are_no_request_are_refused_in_bounded_time(garbage, statuses):
    async def scenario():
        async with mjpeg(limits=Limits(hello_s=1)) as server, a_neighbour(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.mjpeg.port)
            writer.write(garbage)
            answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
            assert int(answer.split()[1]) in (statuses or {400, 408})
            writer.close()

    asyncio.run(scenario())


def test_a_head_is_read_as_rfc_9112_says():
    request = parse_head(b"GET /a?x=%E4%BA%BA+b&y= HTTP/1.1\r\nHost:h\r\nAuthorization: Bearer t \r\n\r\n")
    assert (request.path, request.query, request.bearer) == ("/a", {"x": "人 b", "y": ""}, "t")
    with pytest.raises(ProtocolError, match="not an HTTP/1.1 request"):
        parse_head(b"GET / HTTP/1.1\n\n")
    with pytest.raises(ProtocolError, match="more than"):
        parse_head(b"x" * (MAX_HEAD_BYTES + 1))
    assert read_query({"fps": "30000/1001"}).settings.fps == Fraction(30000, 1001)
    assert read_query({"fps": "23.976"}).settings.fps == Fraction("23.976")


def test_connections_that_ask_for_nothing_are_limited_and_closed():
    async def scenario():
        async with mjpeg(limits=Limits(waiting=2, hello_s=0.5)) as server, a_neighbour(server):
            mute = [await asyncio.open_connection("127.0.0.1", server.mjpeg.port) for _ in range(2)]
            await until(lambda: server.waiting_count == 2)
            for reader, writer in mute:
                assert b"408" in await asyncio.wait_for(reader.read(), TIMEOUT_S)
                writer.close()
            async with asking(server, PERSON) as (_, status, _):
                assert status == 200

    asyncio.run(scenario())


def test_readers_and_websockets_share_one_capacity():
    async def scenario():
        async with mjpeg(limits=Limits(clients=2)) as server, a_neighbour(server):
            async with asking(server, PERSON) as (reader, _, _):
                await read_part(reader)
                async with asking(server, PERSON) as (_, status, head):
                    assert status == 503 and "Retry-After: 5" in head
                assert server.client_count == 2
            await until(lambda: server.client_count == 1)
            async with talking(server, text="a person") as client:
                await client.frames(1)

    asyncio.run(scenario())


def test_a_slow_reader_loses_its_own_frames_and_is_cut_off():
    async def scenario():
        async with mjpeg(Noise, limits=Limits(stall_s=1.0, pixels_per_s=1e9)) as server, a_neighbour(server):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.mjpeg.port))
            sock.sendall(b"GET /stream.mjpg?caption=noise&size=1024x768&quality=100 HTTP/1.1\r\n\r\n")
            await until(lambda: server.client_count == 2)
            session = next(s for s in server._sessions if s._playback.settings.size == (1024, 768))
            await until(lambda: session.counts[0] > 20)
            assert session.counts[1] >= 10, "most of its frames are dropped"
            assert session._socket.transport.get_write_buffer_size() < 4 * 1024 * 768
            await until(lambda: server.client_count == 1)
            assert server.metrics.value("t2v_refused_total", code="too_slow") == 1
            sock.close()

    asyncio.run(scenario())


def test_a_reader_that_vanishes_leaves_nothing():
    async def scenario():
        async with mjpeg() as server, a_neighbour(server):
            for path in (PERSON, "/stream.mjpg", PERSON):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.mjpeg.port)
                writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
                await asyncio.wait_for(reader.readline(), TIMEOUT_S)
                writer.transport.abort()
            await until(lambda: server.client_count == 1 and not server.mjpeg._readers)
            await until(lambda: all(stream.closed for stream in server.made[1:]))

    asyncio.run(scenario())


def test_captions_that_come_too_fast_are_refused_and_the_stream_goes_on():
    async def scenario():
        async with mjpeg(limits=Limits(messages_per_s=0.001, burst=4)) as server:
            async with asking(server, PERSON + "&name=wall") as (reader, _, _):
                assert [await post(server, "wall", f"a person {n}") for n in range(5)] == [202] * 3 + [429] * 2
                await read_part(reader)

    asyncio.run(scenario())


def test_a_server_that_stops_ends_the_answers_well():
    async def scenario():
        async with mjpeg() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.mjpeg.port)
            writer.write(f"GET {PERSON} HTTP/1.1\r\n\r\n".encode())
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            await read_part(reader)
            mute, mute_writer = await asyncio.open_connection("127.0.0.1", server.mjpeg.port)
            await asyncio.wait_for(server.__aexit__(None, None, None), TIMEOUT_S)
            rest = await asyncio.wait_for(reader.read(), TIMEOUT_S)
            assert rest.endswith(b"\r\n--t2v-edge-frame\r\n") or rest == b"", "it ends behind a whole part"
            assert await asyncio.wait_for(mute.read(), TIMEOUT_S) == b""
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", server.mjpeg.port if server.mjpeg._server.sockets else 1)
            writer.close()
            mute_writer.close()

    asyncio.run(scenario())


def test_a_port_that_is_taken_is_said_and_leaves_nothing_bound():
    async def scenario():
        async with mjpeg() as server:
            with pytest.raises(ServerError, match="for MJPEG"):
                async with serving(mjpeg_port=server.mjpeg.port):
                    pass

    asyncio.run(scenario())


@needs_openssl
def test_over_tls_the_same_is_read(tmp_path):
    certificate, key = make_certificate(tmp_path)

    async def scenario():
        trust = ssl.create_default_context(cafile=str(certificate))
        async with mjpeg(tls=open_tls(certificate, key)) as server:
            assert server.mjpeg.url.startswith("https://")
            async with asking(server, PERSON, ssl=trust) as (reader, status, _):
                assert status == 200
                await read_part(reader)
            await until(lambda: server.client_count == 0)
            async with asking(server, "/nowhere", ssl=trust) as (reader, status, _):
                assert status == 404

    asyncio.run(scenario())


def test_opencv_reads_it_as_a_video():
    with InBackground(make=Paced, mjpeg_port=0) as server:
        video = cv2.VideoCapture(f"{server.mjpeg.url}?caption=a%20person&size=64x48&fps=60", cv2.CAP_FFMPEG)
        assert video.isOpened()
        for _ in range(5):
            read, picture = video.read()
            assert read and picture.shape == (48, 64, 3) and abs(int(picture.mean()) - 20) < 8
        video.release()


def test_pyav_reads_it_as_a_video():
    av = pytest.importorskip("av", reason="pip install 't2v-edge[video]'")
    with InBackground(make=Paced, mjpeg_port=0) as server:
        with av.open(f"{server.mjpeg.url}?caption=a%20person&size=64x48&fps=60", format="mpjpeg", timeout=10) as video:
            for _, frame in zip(range(5), video.decode(video=0)):
                assert frame.to_ndarray(format="rgb24").shape == (48, 64, 3)


def test_the_command_serves_it_where_it_is_asked_for(bundle_path, capsys):
    process, line = start_server(bundle_path, "--mjpeg", "0")
    try:
        assert line["mjpeg"].startswith("http://127.0.0.1:") and line["mjpeg"].endswith("/stream.mjpg")
        video = cv2.VideoCapture(line["mjpeg"] + "?caption=a%20person%20is%20walking", cv2.CAP_FFMPEG)
        assert video.read()[1].shape == (16, 16, 3)
        video.release()
        process.terminate()
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0 and err == b"" and json.loads(out)["sessions"] == 1
    finally:
        process.kill()
        process.communicate()
    process, line = start_server(bundle_path)
    process.kill()
    process.communicate()
    assert "mjpeg" not in line, "it is off unless it is asked for"
    assert main(["serve", str(bundle_path), "--mjpeg", "70000"]) == 2
    assert "--mjpeg is 70000" in capsys.readouterr().err
