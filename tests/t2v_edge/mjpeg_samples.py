"""Readers of MJPEG by hand, and streams whose pictures can be told apart after JPEG."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import cv2
import numpy as np

from tests.t2v_edge.live_samples import TIMEOUT_S, FakeStream, serving

PERSON = "/stream.mjpg?caption=a%20person"


class Paced(FakeStream):
    """Frames of a grey that tells their generation also after JPEG."""

    async def __aiter__(self):
        async for frame in super().__aiter__():
            frame.pixels[:] = 40 * frame.generation + 20
            yield frame


class Noise(FakeStream):
    """Frames that JPEG makes large."""

    async def __aiter__(self):
        random = np.random.default_rng(0)
        async for frame in super().__aiter__():
            frame.pixels[:] = random.integers(0, 256, frame.pixels.shape, np.uint8)
            yield frame


def mjpeg(make=Paced, **options):
    return serving(make, mjpeg_port=0, **options)


@asynccontextmanager
async def asking(server, path, headers=(), method="GET", body=b"", **connect):
    """(reader, status, head) of an answer whose body is still to be read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.mjpeg.port, **connect)
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.mjpeg.port}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)).decode()
    try:
        yield reader, int(head.split()[1]), head
    finally:
        writer.close()


async def refused(server, path, headers=(), method="GET", body=b""):
    """(status, text) of an answer that ends."""
    async with asking(server, path, headers, method, body) as (reader, status, _):
        return status, (await asyncio.wait_for(reader.read(), TIMEOUT_S)).decode()


async def post(server, name, text, headers=()):
    return (await refused(server, f"/caption?name={name}", headers, "POST", text.encode()))[0]


async def read_part(reader):
    """(headers, picture) of the next part; the boundary before the first one is skipped."""
    line = await asyncio.wait_for(reader.readuntil(b"\r\n"), TIMEOUT_S)
    if line.startswith(b"--"):
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), TIMEOUT_S)
    headers = {}
    while line != b"\r\n":
        name, _, value = line.decode().strip().partition(": ")
        headers[name] = value
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), TIMEOUT_S)
    data = await asyncio.wait_for(reader.readexactly(int(headers["Content-Length"])), TIMEOUT_S)
    assert await asyncio.wait_for(reader.readuntil(b"--t2v-edge-frame\r\n"), TIMEOUT_S) == b"\r\n--t2v-edge-frame\r\n"
    return headers, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
