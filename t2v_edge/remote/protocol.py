"""The live protocol, version 1: messages as JSON texts, frames as binary messages. Pure: no sockets (docs/protocol.md).

What arrives is not trusted: every malformed input raises `ProtocolError` with a code and a remedy, and nothing else, in
time that `MAX_MESSAGE_BYTES` bounds. Keys that are not known are ignored, so that later versions may add some.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, Optional, Union

from t2v_edge.errors import ProtocolError
from t2v_edge.util import strict_json
from t2v_edge.util.fields import Fields
from t2v_edge.util.limits import MAX_LIVE_FPS, MAX_WIRE_CHARACTERS, MAX_WIRE_SEED, MAX_WIRE_SIDE, MIN_LIVE_FPS

VERSION = 1
VERSIONS = (1,)
"""Versions that this package speaks."""
MAX_MESSAGE_BYTES = 16384
MAX_PAYLOAD_BYTES = 1 << 26
MAX_TEXT, MAX_SIDE, MAX_SEED = MAX_WIRE_CHARACTERS, MAX_WIRE_SIDE, MAX_WIRE_SEED
MIN_FPS, MAX_FPS = MIN_LIVE_FPS, MAX_LIVE_FPS
MAX_WHOLE = (1 << 53) - 1
"""The largest whole number: JavaScript's numbers are exact up to it."""
MAX_SECONDS = 1e9
RAW, JPEG, WEBP = "raw", "jpeg", "webp"
FORMATS = (RAW, JPEG, WEBP)
ACTIONS = ("pause", "resume", "reset", "set")

CLOSE_CODES = {
    "version": 1002,
    "bad_message": 1007,
    "bad_frame": 1007,
    "binary": 1003,
    "too_large": 1009,
    "token": 1008,
    "too_fast": 1008,
    "too_slow": 1008,
    "hello": 1008,
    "capacity": 1013,
    "internal": 1011,
    "stopping": 1001,
}
"""Error code -> WebSocket close code. An error whose code is not here leaves the connection open."""

_DEPTH = 8


@dataclass(frozen=True)
class Settings:
    """How frames shall be; None leaves a value as it is.

    fps: 1 to 240, exact. size: (width, height) in pixels. seed: of every random draw. format: ``raw`` (RGB, 8 bits),
    ``jpeg`` or ``webp``. quality: 1 to 100, of jpeg and webp.
    """

    fps: Optional[Fraction] = None
    size: Optional[tuple[int, int]] = None
    seed: Optional[int] = None
    format: Optional[str] = None
    quality: Optional[int] = None

    @classmethod
    def read(cls, fields: Fields) -> Settings:
        return cls(
            fields.fraction("fps", MIN_FPS, MAX_FPS),
            fields.size("size", MAX_SIDE),
            fields.optional_whole("seed", 0, MAX_SEED),
            fields.optional_choice("format", FORMATS),
            fields.optional_whole("quality", 1, 100),
        )


@dataclass(frozen=True)
class Hello:
    """The client's first message. versions: those it speaks. token: where the server asks for one."""

    type: ClassVar[str] = "hello"
    versions: tuple[int, ...] = VERSIONS
    token: Optional[str] = None
    settings: Settings = Settings()

    @classmethod
    def read(cls, fields: Fields) -> Hello:
        return cls(fields.wholes("versions", 1, 65535, 16), fields.optional_text("token", 512), Settings.read(fields))


@dataclass(frozen=True)
class Welcome:
    """The server's answer. version: what is spoken from here on. bundle: the model's name. base_fps: its own rate."""

    type: ClassVar[str] = "welcome"
    version: int
    session: str
    bundle: str
    base_fps: Fraction
    settings: Settings

    @classmethod
    def read(cls, fields: Fields) -> Welcome:
        base_fps = fields.fraction("base_fps", MIN_FPS, MAX_FPS)
        if base_fps is None:
            raise fields.wrong("base_fps", None, "a number")
        return cls(
            fields.whole("version", 1, 65535),
            fields.text("session", 64),
            fields.text("bundle", 256),
            base_fps,
            Settings.read(fields),
        )


@dataclass(frozen=True)
class Caption:
    """What is being said. A higher revision of a segment replaces a lower one; `final` ends it.

    start, end: seconds in the speaker's own time, where they are known.
    """

    type: ClassVar[str] = "caption"
    segment: int
    revision: int
    text: str
    final: bool = True
    start: Optional[float] = None
    end: Optional[float] = None

    @classmethod
    def read(cls, fields: Fields) -> Caption:
        return cls(
            fields.whole("segment", 0, MAX_WHOLE),
            fields.whole("revision", 0, MAX_WHOLE),
            fields.text("text", MAX_TEXT),
            fields.flag("final", True),
            fields.optional_number("start", 0, MAX_SECONDS),
            fields.optional_number("end", 0, MAX_SECONDS),
        )


@dataclass(frozen=True)
class Control:
    """pause, resume, reset (the motion starts anew, from `seed` where it is given), or set (`settings`)."""

    type: ClassVar[str] = "control"
    action: str
    settings: Settings = Settings()

    @classmethod
    def read(cls, fields: Fields) -> Control:
        return cls(fields.choice("action", ACTIONS), Settings.read(fields))


@dataclass(frozen=True)
class StatsRequest:
    """Asks for `Stats`."""

    type: ClassVar[str] = "stats"

    @classmethod
    def read(cls, fields: Fields) -> StatsRequest:
        return cls()


@dataclass(frozen=True)
class Bye:
    """The sender is about to close the connection."""

    type: ClassVar[str] = "bye"
    reason: str = ""

    @classmethod
    def read(cls, fields: Fields) -> Bye:
        return cls(fields.optional_text("reason", MAX_TEXT) or "")


@dataclass(frozen=True)
class Showing:
    """A caption has been taken: its frames are those of `generation` and later. `text`: as the model reads it."""

    type: ClassVar[str] = "showing"
    generation: int
    segment: int
    revision: int
    text: str

    @classmethod
    def read(cls, fields: Fields) -> Showing:
        return cls(
            fields.whole("generation", 0, MAX_WHOLE),
            fields.whole("segment", 0, MAX_WHOLE),
            fields.whole("revision", 0, MAX_WHOLE),
            fields.text("text", MAX_TEXT),
        )


@dataclass(frozen=True)
class State:
    """Answers every control: what is in force now. Frames of a lower generation than `generation` are out of date."""

    type: ClassVar[str] = "state"
    paused: bool
    generation: int
    settings: Settings

    @classmethod
    def read(cls, fields: Fields) -> State:
        return cls(fields.flag("paused"), fields.whole("generation", 0, MAX_WHOLE), Settings.read(fields))


@dataclass(frozen=True)
class Stats:
    """The session up to now.

    fps: frames sent a second, over the last seconds. dropped: frames that this client was too slow for. latency_ms,
    latency_p95_ms: from a caption being taken to its first frame being sent, the median and the 95th percentile; None
    before there is one. divisor: every so many frames one is made, more than 1 where the server does not keep up.
    """

    type: ClassVar[str] = "stats"
    seconds: float
    fps: float
    sent: int
    dropped: int
    captions: int
    generation: int
    latency_ms: Optional[float] = None
    latency_p95_ms: Optional[float] = None
    divisor: Optional[int] = None

    @classmethod
    def read(cls, fields: Fields) -> Stats:
        return cls(
            fields.number("seconds", 0, MAX_SECONDS),
            fields.number("fps", 0, MAX_SECONDS),
            fields.whole("sent", 0, MAX_WHOLE),
            fields.whole("dropped", 0, MAX_WHOLE),
            fields.whole("captions", 0, MAX_WHOLE),
            fields.whole("generation", 0, MAX_WHOLE),
            fields.optional_number("latency_ms", 0, MAX_SECONDS),
            fields.optional_number("latency_p95_ms", 0, MAX_SECONDS),
            fields.optional_whole("divisor", 1, MAX_FPS),
        )


@dataclass(frozen=True)
class Error:
    """Something was refused. code: for programs. fatal: the connection is about to be closed."""

    type: ClassVar[str] = "error"
    code: str
    message: str
    remedy: str
    fatal: bool = False

    @classmethod
    def read(cls, fields: Fields) -> Error:
        return cls(
            fields.text("code", 64),
            fields.text("message", MAX_TEXT),
            fields.text("remedy", MAX_TEXT),
            fields.flag("fatal", False),
        )

    @classmethod
    def of(cls, error: ProtocolError) -> Error:
        return cls(error.code, error.message[:MAX_TEXT], error.remedy[:MAX_TEXT], error.code in CLOSE_CODES)


ClientMessage = Union[Hello, Caption, Control, StatsRequest, Bye]
ServerMessage = Union[Welcome, Showing, State, Stats, Error, Bye]
_FROM_CLIENT: dict[str, Any] = {kind.type: kind for kind in (Hello, Caption, Control, StatsRequest, Bye)}
_FROM_SERVER: dict[str, Any] = {kind.type: kind for kind in (Welcome, Showing, State, Stats, Error, Bye)}


def read_client(data: Union[str, bytes]) -> ClientMessage:
    """What a client sent; raises `ProtocolError`."""
    if not isinstance(data, str):
        raise ProtocolError("binary", "a client's message is binary", "send JSON as a text message")
    message: ClientMessage = _read(data, _FROM_CLIENT)
    return message


def read_server(data: Union[str, bytes]) -> ServerMessage:
    """What a server sent as text; raises `ProtocolError`, with code ``unknown_type`` for what a client may skip."""
    if not isinstance(data, str):
        raise ProtocolError(
            "bad_frame",
            "the server's message is binary where text was due",
            "use a client and a server of one version of the protocol",
        )
    message: ServerMessage = _read(data, _FROM_SERVER)
    return message


def write(message: Union[ClientMessage, ServerMessage]) -> str:
    """The text of a message; values that are None are left out."""
    values = {"type": message.type}
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Settings):
            values.update({f.name: _plain(getattr(value, f.name)) for f in fields(value)})
        else:
            values[field.name] = _plain(value)
    kept = {name: value for name, value in values.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def negotiate(versions: Sequence[int]) -> int:
    """The highest version that both sides speak; raises `ProtocolError` where there is none."""
    shared = set(versions) & set(VERSIONS)
    if not shared:
        mine, theirs = (", ".join(map(str, sorted(v))) for v in (VERSIONS, versions))
        raise ProtocolError(
            "version", f"the client speaks versions {theirs}, the server {mine}", "update the older of the two"
        )
    return max(shared)


def _read(text: str, kinds: dict[str, Any]) -> Any:
    # A character is at least a byte, so the long ones need not be encoded to be refused.
    if len(text) > MAX_MESSAGE_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_MESSAGE_BYTES:
        raise ProtocolError("too_large", f"the message has more than {MAX_MESSAGE_BYTES} bytes", "send less at once")
    try:
        values = strict_json.parse(text, _DEPTH)
    except ValueError as error:
        raise ProtocolError("bad_message", f"the message is not JSON ({error})", "send one JSON object") from error
    if not isinstance(values, dict):
        raise ProtocolError("bad_message", f"the message is a JSON {type(values).__name__}", "send one JSON object")
    kind = values.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise ProtocolError(
            "unknown_type", f"messages of type {str(kind)[:40]!r} are not known", f"send one of: {', '.join(kinds)}"
        )
    return kinds[kind].read(Fields(kind, values))


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else str(value)
    return list(value) if isinstance(value, tuple) else value


_HEADER = struct.Struct("<4sBBHIIQIIHHI")
MAGIC = b"T2VF"
HEADER_BYTES = _HEADER.size
_MAX_32 = (1 << 32) - 1


@dataclass(frozen=True)
class FrameHeader:
    """What stands before a frame's payload: 40 bytes, little-endian.

    generation: counts caption changes and resets. sequence: counts the frames made for this session, so that a gap is
    frames that were dropped. pts * time_base: seconds since the stream's start, exact. width, height: in pixels, rows
    from the top. payload_bytes: of what follows. Raises `ProtocolError` for values out of range.
    """

    format: str
    generation: int
    sequence: int
    pts: int
    time_base: Fraction
    width: int
    height: int
    payload_bytes: int

    def __post_init__(self) -> None:
        ranges = (
            ("generation", self.generation, 0, _MAX_32),
            ("sequence", self.sequence, 0, _MAX_32),
            ("pts", self.pts, 0, MAX_WHOLE),
            ("numerator", self.time_base.numerator, 1, _MAX_32),
            ("denominator", self.time_base.denominator, 1, _MAX_32),
            ("width", self.width, 1, MAX_SIDE),
            ("height", self.height, 1, MAX_SIDE),
            ("payload_bytes", self.payload_bytes, 1, MAX_PAYLOAD_BYTES),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise _bad_frame(f"{name} of a frame is {value}, expected {low} to {high}")
        if self.format not in FORMATS:
            raise _bad_frame(f"a frame's format is {self.format!r}, expected one of: {', '.join(FORMATS)}")
        if self.format == RAW and self.payload_bytes != 3 * self.width * self.height:
            raise _bad_frame(f"a raw frame of {self.width}x{self.height} has {self.payload_bytes} bytes")

    def pack(self) -> bytes:
        """The 40 bytes."""
        return _HEADER.pack(
            MAGIC,
            VERSION,
            FORMATS.index(self.format),
            HEADER_BYTES,
            self.generation,
            self.sequence,
            self.pts,
            self.time_base.numerator,
            self.time_base.denominator,
            self.width,
            self.height,
            self.payload_bytes,
        )

    @classmethod
    def unpack(cls, message: bytes) -> tuple[FrameHeader, memoryview]:
        """The header of a binary message, and a view of its payload; raises `ProtocolError`."""
        if len(message) < HEADER_BYTES:
            raise _bad_frame(f"a binary message has {len(message)} bytes, less than a header's {HEADER_BYTES}")
        (magic, version, kind, start, generation, sequence, pts, numerator, denominator, width, height, size) = (
            _HEADER.unpack_from(message)
        )
        if magic != MAGIC or version != VERSION:
            raise _bad_frame(f"a binary message starts with {magic!r}, version {version}: it is no frame of version 1")
        if kind >= len(FORMATS) or denominator == 0:
            raise _bad_frame(f"a frame has format {kind} and a time base of {numerator}/{denominator}")
        if start < HEADER_BYTES or len(message) != start + size:
            raise _bad_frame(f"a frame has {len(message)} bytes, its header says {start} + {size}")
        header = cls(FORMATS[kind], generation, sequence, pts, Fraction(numerator, denominator), width, height, size)
        return header, memoryview(message)[start:]


def _bad_frame(what: str) -> ProtocolError:
    return ProtocolError("bad_frame", what, "use a client and a server of one version of the protocol")
