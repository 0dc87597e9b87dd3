"""Hostile clients, of the kinds in `KINDS`. Disconnected, they reconnect.

    python -m t2v_edge.bench.live.hostile < PLAN

They run in a process of their own, and so take no time from the clients that measure. The plan is a line of JSON on
stdin: url, token, cafile, and how many there are of each kind. The process runs until stdin ends. Then it writes its
counts to stdout, as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Optional
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from t2v_edge.errors import ClientError
from t2v_edge.remote.protocol import MAX_FPS, MAX_SIDE, Caption, Hello, Settings, write

KINDS = ("mute", "flood", "greedy", "wire_flood", "silent")
"""Clients that never read; that send 1,000 captions a second; that ask for the largest frames at the highest rate; that
send empty frames and no hello; that connect and send nothing."""
FLOOD_PER_S = 1000
BATCH_S = 0.01
"""Time between two batches of a flood."""
RETURN_S = 0.05
"""Time before a disconnected client reconnects."""
MUTE_CAPTION_S = 0.5
"""Time between two captions of a mute client."""
WINDOW_BYTES = 4096
PATIENCE_S = 5.0
_EMPTY_PINGS = b"\x89\x80mask" * 1000


@dataclass
class HostileCounts:
    """Counts of hostile clients.

    sessions: connections that sent a hello; of wire floods and silent ones, that were opened. refused: those that
    failed before it.
    """

    mute_sessions: int = 0
    flood_sessions: int = 0
    flood_captions: int = 0
    greedy_sessions: int = 0
    greedy_frames: int = 0
    wire_flood_sessions: int = 0
    wire_flood_bytes: int = 0
    silent_sessions: int = 0
    refused: int = 0


class HostileClients:
    """Hostile clients in a process of their own, as a context manager. Raises `ClientError` if it does not start.

    clients: how many there are of each kind.
    """

    def __init__(self, url: str, token: Optional[str], cafile: Optional[str], clients: Mapping[str, int]) -> None:
        self._plan = {"url": url, "token": token, "cafile": cafile, **clients}
        self._process: Optional[asyncio.subprocess.Process] = None
        self.counts = HostileCounts()

    async def __aenter__(self) -> HostileClients:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "t2v_edge.bench.live.hostile",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._plan).encode() + b"\n")
        ready = await asyncio.wait_for(self._process.stdout.readline(), 6 * PATIENCE_S)
        if not ready:
            raise ClientError("the hostile clients did not start; look at their messages above")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop the clients and read their `counts`. Calling it again does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 2 * PATIENCE_S)
            with contextlib.suppress(ValueError, TypeError):
                self.counts = HostileCounts(**json.loads(output))
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


async def run_clients(plan: dict[str, Any], counts: HostileCounts) -> None:
    """Run the plan's clients until cancelled."""
    tls = ssl.create_default_context(cafile=plan["cafile"]) if plan["url"].startswith("wss:") else None
    kinds = {"mute": _mute, "flood": _flood, "greedy": _greedy, "wire_flood": _wire_flood, "silent": _silent}
    await asyncio.gather(*(run(plan, tls, counts) for kind, run in kinds.items() for _ in range(plan.get(kind, 0))))


async def _mute(plan: dict[str, Any], tls: Optional[ssl.SSLContext], counts: HostileCounts) -> None:
    """Ask for frames and read none of them."""
    count = 0
    while True:
        async with _connected(plan, tls, counts) as sock:
            if sock is not None:
                counts.mute_sessions += 1
                with contextlib.suppress(ConnectionClosed, OSError, asyncio.TimeoutError):
                    while True:
                        count += 1
                        # Nothing is read here: only a write shows that the server has gone.
                        await asyncio.wait_for(sock.send(_caption(count)), PATIENCE_S)
                        await asyncio.sleep(MUTE_CAPTION_S)
        await asyncio.sleep(RETURN_S)


async def _flood(plan: dict[str, Any], tls: Optional[ssl.SSLContext], counts: HostileCounts) -> None:
    """Send different captions at `FLOOD_PER_S`, and read the answers."""
    loop = asyncio.get_running_loop()
    while True:
        async with _connected(plan, tls, counts) as sock:
            if sock is not None:
                counts.flood_sessions += 1
                reading = asyncio.ensure_future(_read(sock))
                begun, sent = loop.time(), 0
                with contextlib.suppress(ConnectionClosed, OSError):
                    while not reading.done():
                        while sent < FLOOD_PER_S * (loop.time() - begun):
                            await sock.send(_caption(sent))
                            sent, counts.flood_captions = sent + 1, counts.flood_captions + 1
                        await asyncio.sleep(BATCH_S)
                reading.cancel()
        await asyncio.sleep(RETURN_S)


async def _greedy(plan: dict[str, Any], tls: Optional[ssl.SSLContext], counts: HostileCounts) -> None:
    """Ask for the largest frames at the highest rate, and read them."""
    while True:
        async with _connected(plan, tls, counts, Settings(Fraction(MAX_FPS), (MAX_SIDE, MAX_SIDE))) as sock:
            if sock is not None:
                counts.greedy_sessions += 1
                with contextlib.suppress(ConnectionClosed, OSError):
                    await sock.send(_caption(0))
                    async for message in sock:
                        counts.greedy_frames += isinstance(message, bytes)
        await asyncio.sleep(RETURN_S)


async def _wire_flood(plan: dict[str, Any], tls: Optional[ssl.SSLContext], counts: HostileCounts) -> None:
    """Send empty pings as fast as the server takes them, and no hello."""
    while True:
        async with _connected(plan, tls, counts, hello=False) as sock:
            if sock is not None:
                counts.wire_flood_sessions += 1
                while not sock.transport.is_closing():
                    if sock.transport.get_write_buffer_size() < len(_EMPTY_PINGS):
                        sock.transport.write(_EMPTY_PINGS)
                        counts.wire_flood_bytes += len(_EMPTY_PINGS)
                    await asyncio.sleep(0.001)
        await asyncio.sleep(RETURN_S)


async def _silent(plan: dict[str, Any], tls: Optional[ssl.SSLContext], counts: HostileCounts) -> None:
    """Connect, send nothing, and connect again when the server ends it."""
    parts = urlsplit(plan["url"])
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            counts.silent_sessions += 1
            with contextlib.suppress(OSError):
                await reader.read()
            writer.transport.abort()
        await asyncio.sleep(RETURN_S)


async def _read(sock: Any) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for _ in sock:
            pass


def _caption(number: int) -> str:
    return write(Caption(number, 0, f"a person in shirt number {number} is running"))


@contextlib.asynccontextmanager
async def _connected(
    plan: dict[str, Any],
    tls: Optional[ssl.SSLContext],
    counts: HostileCounts,
    settings: Optional[Settings] = None,
    hello: bool = True,
) -> AsyncIterator[Any]:
    """A connection that has sent its hello; None if the server refused it. Without settings its buffers are small."""
    parts = urlsplit(plan["url"])
    sock: Any = None
    try:
        kernel = await asyncio.get_running_loop().run_in_executor(
            None, _dial, parts.hostname, parts.port, settings is None
        )
        more = {} if tls is None else {"ssl": tls, "server_hostname": parts.hostname}
        sock = await connect(
            plan["url"],
            sock=kernel,
            compression=None,
            max_size=None,
            max_queue=1,
            ping_interval=None,
            close_timeout=0.1,
            **more,
        )
        if hello:
            await sock.send(write(Hello(token=plan["token"], settings=settings or Settings())))
    except (OSError, InvalidHandshake, ConnectionClosed, asyncio.TimeoutError):
        counts.refused += 1
    try:
        yield sock
    finally:
        if sock is not None:
            sock.transport.abort()


def _dial(host: Optional[str], port: Optional[int], small: bool) -> socket.socket:
    last: Optional[OSError] = None
    for family, kind, number, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        kernel = socket.socket(family, kind, number)
        try:
            if small:
                kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
            kernel.settimeout(PATIENCE_S)
            kernel.connect(address)
            kernel.setblocking(False)
            return kernel
        except OSError as error:
            kernel.close()
            last = error
    raise last or OSError(f"{host} has no address")


async def _main() -> None:
    loop = asyncio.get_running_loop()
    plan = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    counts = HostileCounts()
    playing = asyncio.ensure_future(run_clients(plan, counts))
    ended = loop.run_in_executor(None, sys.stdin.read)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.wait({playing, ended}, return_when=asyncio.FIRST_COMPLETED)
    if playing.done():
        playing.result()  # it ends only by failing: raise that
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    sys.stdout.write(json.dumps(asdict(counts)) + "\n")


if __name__ == "__main__":
    asyncio.run(_main())
