"""The messages of the live protocol, version 1, as JSON texts (docs/protocol.md). No sockets here.

Input is not trusted. Every malformed input raises `ProtocolError` with a code and a remedy, and nothing else.
`MAX_MESSAGE_BYTES` bounds the time. Unknown keys are ignored, so that later versions may add some.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Callable, ClassVar, Optional, TypeVar, Union

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
"""Error code -> WebSocket close code. An error with another code leaves the connection open."""

_DEPTH = 8
M = TypeVar("M", bound="Readable")


def _by(getter: Callable[..., Any], *limits: Any) -> dict[str, Any]:
    """A field's metadata: the method of `Fields` that reads its value, and that method's limits."""
    return {"read": lambda values, name: getter(values, name, *limits)}


_COUNT = _by(Fields.whole, 0, MAX_WHOLE)
_NUMBER = _by(Fields.number, 0, MAX_SECONDS)
_OPTIONAL_NUMBER = _by(Fields.optional_number, 0, MAX_SECONDS)
_TEXT = _by(Fields.text, MAX_TEXT)
_CODE = _by(Fields.text, 64)


@dataclass(frozen=True)
class Readable:
    """The base of messages and settings. The metadata of each field say how to read its value."""

    @classmethod
    def read(cls: type[M], values: Fields) -> M:
        """Read the fields from a message. Raises `ProtocolError`."""
        return cls(**{item.name: item.metadata["read"](values, item.name) for item in fields(cls)})


@dataclass(frozen=True)
class Settings(Readable):
    """Settings of the frames. None leaves a setting unchanged.

    fps: frames a second, 1 to 240, exact.
    size: (width, height) in pixels, each 1 to `MAX_SIDE`.
    seed: for every random draw.
    format: ``raw`` (RGB, 8 bits), ``jpeg`` or ``webp``.
    quality: 1 to 100, for jpeg and webp.
    """

    fps: Optional[Fraction] = field(default=None, metadata=_by(Fields.optional_fraction, MIN_FPS, MAX_FPS))
    size: Optional[tuple[int, int]] = field(default=None, metadata=_by(Fields.optional_size, MAX_SIDE))
    seed: Optional[int] = field(default=None, metadata=_by(Fields.optional_whole, 0, MAX_SEED))
    format: Optional[str] = field(default=None, metadata=_by(Fields.optional_choice, FORMATS))
    quality: Optional[int] = field(default=None, metadata=_by(Fields.optional_whole, 1, 100))

    def changed_by(self, changes: Settings) -> Settings:
        """These settings, with the values of `changes` that are not None."""
        given = {item.name: getattr(changes, item.name) for item in fields(changes)}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


_SETTINGS = {"read": lambda values, name: Settings.read(values)}


@dataclass(frozen=True)
class Hello(Readable):
    """The client's first message. versions: those the client speaks. token: the server's token, if it has one."""

    type: ClassVar[str] = "hello"
    versions: tuple[int, ...] = field(default=VERSIONS, metadata=_by(Fields.wholes, 1, 65535, 16))
    token: Optional[str] = field(default=None, metadata=_by(Fields.optional_text, 512))
    settings: Settings = field(default=Settings(), metadata=_SETTINGS)


@dataclass(frozen=True)
class Welcome(Readable):
    """The server's answer to `Hello`.

    version: the protocol's version from here on.
    bundle: the model's name.
    base_fps: the model's own frames a second.
    pixels_per_s: a client gets at most so many, see docs/protocol.md. None from an older server.
    """

    type: ClassVar[str] = "welcome"
    version: int = field(metadata=_by(Fields.whole, 1, 65535))
    session: str = field(metadata=_CODE)
    bundle: str = field(metadata=_by(Fields.text, 256))
    base_fps: Fraction = field(metadata=_by(Fields.fraction, MIN_FPS, MAX_FPS))
    settings: Settings = field(metadata=_SETTINGS)
    pixels_per_s: Optional[int] = field(default=None, metadata=_by(Fields.optional_whole, 1, MAX_WHOLE))


@dataclass(frozen=True)
class Caption(Readable):
    """A caption. A higher revision of a segment replaces a lower one, and `final` ends the segment.

    start, end: seconds in the speaker's own time, if known.
    """

    type: ClassVar[str] = "caption"
    segment: int = field(metadata=_COUNT)
    revision: int = field(metadata=_COUNT)
    text: str = field(metadata=_TEXT)
    final: bool = field(default=True, metadata=_by(Fields.flag, True))
    start: Optional[float] = field(default=None, metadata=_OPTIONAL_NUMBER)
    end: Optional[float] = field(default=None, metadata=_OPTIONAL_NUMBER)


@dataclass(frozen=True)
class Control(Readable):
    """A command: pause, resume, reset (restart the motion, with `seed` if given) or set (apply `settings`)."""

    type: ClassVar[str] = "control"
    action: str = field(metadata=_by(Fields.choice, ACTIONS))
    settings: Settings = field(default=Settings(), metadata=_SETTINGS)


@dataclass(frozen=True)
class StatsRequest(Readable):
    """A request for `Stats`."""

    type: ClassVar[str] = "stats"


@dataclass(frozen=True)
class Bye(Readable):
    """The last message: its sender is about to close the connection."""

    type: ClassVar[str] = "bye"
    reason: str = field(default="", metadata=_by(Fields.optional_text, MAX_TEXT, ""))


@dataclass(frozen=True)
class Showing(Readable):
    """The server's notice that a caption is in use, in frames of `generation` and later.

    text: the caption as the model reads it.
    """

    type: ClassVar[str] = "showing"
    generation: int = field(metadata=_COUNT)
    segment: int = field(metadata=_COUNT)
    revision: int = field(metadata=_COUNT)
    text: str = field(metadata=_TEXT)


@dataclass(frozen=True)
class State(Readable):
    """The settings in force, as the answer to every `Control`. Frames of a lower generation are out of date."""

    type: ClassVar[str] = "state"
    paused: bool = field(metadata=_by(Fields.flag))
    generation: int = field(metadata=_COUNT)
    settings: Settings = field(metadata=_SETTINGS)


@dataclass(frozen=True)
class Stats(Readable):
    """Figures of the session so far.

    fps: frames sent a second, over the last seconds.
    dropped: frames that this client was too slow for.
    latency_ms, latency_p95_ms: median and 95th percentile of the time from a caption's arrival to its first frame
        sent. None before the first.
    divisor: one frame in so many is made. More than 1 if the server is too slow to make all.
    """

    type: ClassVar[str] = "stats"
    seconds: float = field(metadata=_NUMBER)
    fps: float = field(metadata=_NUMBER)
    sent: int = field(metadata=_COUNT)
    dropped: int = field(metadata=_COUNT)
    captions: int = field(metadata=_COUNT)
    generation: int = field(metadata=_COUNT)
    latency_ms: Optional[float] = field(default=None, metadata=_OPTIONAL_NUMBER)
    latency_p95_ms: Optional[float] = field(default=None, metadata=_OPTIONAL_NUMBER)
    divisor: Optional[int] = field(default=None, metadata=_by(Fields.optional_whole, 1, MAX_FPS))


@dataclass(frozen=True)
class Error(Readable):
    """A refusal. code: for programs. fatal: the connection is about to be closed."""

    type: ClassVar[str] = "error"
    code: str = field(metadata=_CODE)
    message: str = field(metadata=_TEXT)
    remedy: str = field(metadata=_TEXT)
    fatal: bool = field(default=False, metadata=_by(Fields.flag, False))

    @classmethod
    def of(cls, error: ProtocolError) -> Error:
        return cls(error.code, error.message[:MAX_TEXT], error.remedy[:MAX_TEXT], error.code in CLOSE_CODES)


ClientMessage = Union[Hello, Caption, Control, StatsRequest, Bye]
ServerMessage = Union[Welcome, Showing, State, Stats, Error, Bye]
_FROM_CLIENT: dict[str, Any] = {kind.type: kind for kind in (Hello, Caption, Control, StatsRequest, Bye)}
_FROM_SERVER: dict[str, Any] = {kind.type: kind for kind in (Welcome, Showing, State, Stats, Error, Bye)}


def read_client(data: Union[str, bytes]) -> ClientMessage:
    """Read a client's message. Raises `ProtocolError`."""
    if not isinstance(data, str):
        raise ProtocolError("binary", "a client's message is binary", "send JSON as a text message")
    message: ClientMessage = _read(data, _FROM_CLIENT)
    return message


def read_server(data: Union[str, bytes]) -> ServerMessage:
    """Read a server's text message. Raises `ProtocolError`; a client may skip those with the code ``unknown_type``."""
    if not isinstance(data, str):
        remedy = "use a client and a server of one version of the protocol"
        raise ProtocolError("bad_frame", "the server's message is binary and should be text", remedy)
    message: ServerMessage = _read(data, _FROM_SERVER)
    return message


def write(message: Union[ClientMessage, ServerMessage]) -> str:
    """The JSON text of a message. Values that are None are left out."""
    values = {"type": message.type}
    for item in fields(message):
        value = getattr(message, item.name)
        if isinstance(value, Settings):
            values.update({inner.name: _plain(getattr(value, inner.name)) for inner in fields(value)})
        else:
            values[item.name] = _plain(value)
    kept = {name: value for name, value in values.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def negotiate(versions: Sequence[int]) -> int:
    """The highest version that both sides speak. Raises `ProtocolError` if they share none."""
    shared = set(versions) & set(VERSIONS)
    if not shared:
        mine, theirs = (", ".join(map(str, sorted(v))) for v in (VERSIONS, versions))
        raise ProtocolError(
            "version", f"the client speaks versions {theirs}, the server {mine}", "update the older of the two"
        )
    return max(shared)


def _read(text: str, kinds: dict[str, Any]) -> Any:
    # A character is at least a byte, so a text that is too long is refused without encoding it.
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
