"""Servers that break the protocol, each in one way: a client must refuse all of them, in bounded time and memory."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from fractions import Fraction

from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import Settings, Showing, Welcome, write

WELCOME = write(Welcome(1, "s", "tiny", Fraction(16), Settings(Fraction(30), (8, 6), 0, "raw", 85))).encode()
PIXELS = bytes(8 * 6 * 3)
HEADER = FrameHeader("raw", 0, 0, 0, Fraction(1, 30), 8, 6, len(PIXELS)).pack()
LONG_S = 60
TEXT, BINARY, GO_ON, CLOSE, PING = 1, 2, 0, 8, 9


def frame(opcode, data=b"", first=0x80):
    """A WebSocket frame as a server sends it."""
    size = len(data)
    length = (
        bytes([size])
        if size < 126
        else struct.pack(">BH", 126, size)
        if size < 65536
        else struct.pack(">BQ", 127, size)
    )
    return bytes([first | opcode]) + length + data


def changed(offset, kind, value):
    """A frame of video with one field of its header changed."""
    header = bytearray(HEADER)
    struct.pack_into("<" + kind, header, offset, value)
    return frame(BINARY, bytes(header) + PIXELS)


# Sent behind the handshake and the welcome.
BAD_FRAMES = {
    "no frame": frame(BINARY, b"\xff" * 100),
    "short frame": frame(BINARY, HEADER + PIXELS[:-1]),
    "cut header": frame(BINARY, HEADER[:39]),
    "other version": changed(4, "B", 2),
    "other format": changed(5, "B", 3),
    "no time base": changed(28, "I", 0),
    "no width": changed(32, "H", 0),
    "wrong width": changed(32, "H", 9),
    "huge payload": changed(36, "I", 0xFFFFFFFF),
    "early payload": changed(6, "H", 8),
    "late pts": changed(16, "Q", 1 << 60),
    "text": frame(TEXT, b"this is no JSON"),
    "deep": frame(TEXT, b'{"a":' + b"[" * 5000),
    "half text": frame(TEXT, b'{"type":"showing","generation":'),
    "wild generation": frame(TEXT, b'{"type":"showing","generation":1e300,"text":""}'),
    "long text": frame(TEXT, b'{"type":"' + b"x" * 20000 + b'"}'),
}
# Only who does its own framing can be asked to refuse these.
BAD_FRAMING = {
    "huge length": b"\x82\x7f" + struct.pack(">Q", 1 << 62),
    "huge text": b"\x81\x7f" + struct.pack(">Q", 1 << 20),
    "masked": b"\x82\x85\0\0\0\0hello",
    "reserved bits": frame(BINARY, b"x", 0xC0),
    "odd opcode": frame(3, b"x"),
    "long ping": frame(PING, b"x" * 126),
    "split ping": frame(PING, b"x", 0),
    "no start": frame(GO_ON, b"x"),
    "two starts": frame(TEXT, b"x", 0) + frame(TEXT, b"x"),
    "no UTF-8": frame(TEXT, b'{"a":"\xc0\x80"}'),
    "surrogate": frame(TEXT, b'{"a":"\xed\xa0\x80"}'),
    "endless text": frame(TEXT, b"x" * 1000, 0) + 100 * frame(GO_ON, b"x" * 1000, 0),
    "close": frame(CLOSE, b"\x03\xf0token: wrong"),
    "half a frame": b"\x82\x7e\xff",
    "garbage": bytes(range(255, 0, -1)) * 20,
}
# A frame, and behind it word of a newer caption: nobody may show the frame after that.
OVERTAKEN = {"overtaken": frame(BINARY, HEADER + PIXELS) + frame(TEXT, write(Showing(1, 1, 0, "newer")).encode())}
# Right in themselves, and without end.
FLOODS = {
    "pings": frame(PING, b"x") * 1000,
    "texts": frame(TEXT, write(Showing(0, 0, 0, "x")).encode()) * 100,
    "frames": frame(BINARY, HEADER + PIXELS) * 100,
}
BAD_ANSWERS = {
    "wrong accept": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
    "no accept": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "not found": b"HTTP/1.1 404 Not Found\r\n\r\n",
    "no HTTP": b"\0\xff" * 50 + b"\r\n\r\n",
    "odd head": b"HTTP/1.1 101 x\r\n:\r\nSec-WebSocket-Accept\r\nsec-websocket-accept:\r\n\r\n",
    "endless head": b"HTTP/1.1 101 x\r\n" + b"X: yyyyyyyy\r\n" * 100_000,
    "mute": b"",
}


@contextmanager
def serving_badly(kind):
    """The address of a server that does it to every client."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                kept.append(connection)
                threading.Thread(target=_mistreat, args=(connection, kind), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/live"
    finally:
        listener.close()
        for connection in kept:
            connection.close()


def _mistreat(connection, kind):
    with suppress(OSError):
        connection.settimeout(LONG_S)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(4096)
        if kind in BAD_ANSWERS:
            connection.sendall(BAD_ANSWERS[kind])
        else:
            connection.sendall(_accept(head))
            connection.recv(4096)  # the hello
            showing = frame(TEXT, write(Showing(0, 0, 0, "x")).encode())
            behind = {**BAD_FRAMES, **BAD_FRAMING, **OVERTAKEN, **FLOODS}[kind]
            connection.sendall(frame(TEXT, WELCOME) + showing + behind)
        if kind in FLOODS:
            threading.Thread(target=_flood, args=(connection, FLOODS[kind]), daemon=True).start()
        if kind == "half a frame":
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _flood(connection, data):
    with suppress(OSError):
        while True:
            connection.sendall(data)


def _accept(head):
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split(b": ")[1]
    proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n"
    )
