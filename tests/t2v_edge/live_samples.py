"""A live server on loopback with streams of its own making, and clients that speak the protocol by hand."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import threading
from contextlib import asynccontextmanager
from fractions import Fraction

import numpy as np
import pytest
import websockets
from websockets.asyncio.client import connect

from t2v_edge.errors import CaptionError, UsageError
from t2v_edge.frame import Frame
from t2v_edge.live.stats import LiveCounts
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import Caption, Hello, Settings, Showing, Welcome, read_server, write
from t2v_edge.server.server import LiveServer, ServerOptions

DEFAULTS = Settings(Fraction(100), (8, 6), 0, "raw", 85)
# Loopback needs no proxy, whatever the environment says; older versions of websockets know of none.
DIRECT = {"proxy": None} if int(websockets.__version__.split(".")[0]) >= 15 else {}
TIMEOUT_S = 30  # of anything that should happen at once: generous, because machines that test are busy


needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificate: apt install openssl"
)


def make_certificate(folder):
    """(certificate, key): files of a certificate for 127.0.0.1, signed by itself."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class FakeStream:
    """Frames whose pixels are all their stream's generation; keeps the promises of `playback.Stream`."""

    def __init__(self, settings: Settings) -> None:
        if settings.size == (13, 13):
            raise UsageError("size is 13x13; take another")
        self.settings = settings
        self.paused = self.closed = False
        self.generation = -1
        self.caption = None
        self.threads = set()
        self.counts = LiveCounts()
        self.tell = None

    def tell_times(self, tell):
        self.tell = tell

    def set_caption(self, caption):
        self.threads.add(threading.current_thread())
        if caption == "unreadable":
            raise CaptionError("the caption has no tokens; reword it")
        self.generation += caption != self.caption
        self.caption = caption
        return self.generation

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def reset(self, seed=None):
        self.generation += 1
        return self.generation

    def close(self):
        self.closed = True

    async def __aiter__(self):
        width, height = self.settings.size
        index = 0
        while not self.closed:
            if self.caption == "broken":
                raise RuntimeError("the render stage burns")
            if self.generation >= 0 and not self.paused:
                pixels = np.full((height, width, 3), self.generation, np.uint8)
                yield Frame(pixels, index, index, 1 / self.settings.fps, self.generation, self.caption)
                index += 1
            await asyncio.sleep(float(1 / self.settings.fps))


class InBackground:
    """A server on a loop and thread of its own: for clients that block."""

    def __init__(self, **options) -> None:
        self._options = options

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._context = serving(**self._options)
        return self._do(self._context.__aenter__())

    def __exit__(self, *error):
        self._do(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)


@asynccontextmanager
async def serving(make=FakeStream, **options):
    """A server; its streams are appended to `server.made`."""
    made = []

    def open_stream(settings):
        made.append(make(settings))
        return made[-1]

    server = LiveServer(open_stream, "tiny", Fraction(16), ServerOptions(DEFAULTS, **{"port": 0, **options}))
    server.made = made
    async with server:
        yield server


class Talker:
    """A client by hand."""

    def __init__(self, socket) -> None:
        self.socket = socket
        self.welcome = None
        self.segment = 0

    async def say(self, message):
        await self.socket.send(message if isinstance(message, (str, bytes)) else write(message))

    async def caption(self, text, final=True):
        await self.say(Caption(self.segment, 0, text, final))
        self.segment += 1

    async def hear(self):
        """The next message: a server message, or a (header, payload)."""
        data = await asyncio.wait_for(self.socket.recv(), TIMEOUT_S)
        return read_server(data) if isinstance(data, str) else FrameHeader.unpack(data)

    async def hear_a(self, kind):
        """The next message of a kind; frames are of kind tuple."""
        while not isinstance(message := await self.hear(), kind):
            pass
        return message

    async def frames(self, count):
        return [await self.hear_a(tuple) for _ in range(count)]


@asynccontextmanager
async def talking(server, hello=None, text=None, **options):
    """A client that has been welcomed and, with `text`, is being shown it."""
    async with connect(server.url, compression=None, max_size=None, close_timeout=1, **DIRECT, **options) as socket:
        talker = Talker(socket)
        await talker.say(hello or Hello())
        talker.welcome = await talker.hear_a(Welcome)
        if text is not None:
            await talker.caption(text)
            await talker.hear_a(Showing)
        yield talker


@asynccontextmanager
async def a_neighbour(server, hello=None):
    """Another client, whose stream goes on before, while and after whatever happens inside."""
    async with talking(server, hello, "a neighbour") as talker:
        before = (await talker.frames(3))[-1][0]
        yield talker
        after = (await talker.frames(20))[-1][0]
        assert after.sequence >= before.sequence + 20 and after.generation == before.generation


async def until(condition):
    """Wait for what should happen soon."""

    async def wait():
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), TIMEOUT_S)


async def knock(server, path="/live", headers=()):
    """Open a WebSocket over a bare TCP connection; (reader, writer) behind the response's headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
    return reader, writer, head.decode()


def masked(text):
    """A short text message as a client frames it."""
    data, mask = text.encode(), os.urandom(4)
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))


async def fetch(server, path, headers=()):
    """(status, headers, body) of a plain GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = (await asyncio.wait_for(reader.read(), TIMEOUT_S)).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), head, body
