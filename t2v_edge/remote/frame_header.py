"""The header before each frame's payload in a binary message of the live protocol (docs/protocol.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

from t2v_edge.errors import ProtocolError
from t2v_edge.remote.protocol import FORMATS, MAX_PAYLOAD_BYTES, MAX_SIDE, MAX_WHOLE, RAW, VERSION

_HEADER = struct.Struct("<4sBBHIIQIIHHI")
MAGIC = b"T2VF"
HEADER_BYTES = _HEADER.size
_MAX_32 = (1 << 32) - 1


@dataclass(frozen=True)
class FrameHeader:
    """The 40 bytes, little-endian, before a frame's payload. Raises `ProtocolError` for a value out of range.

    generation: counts caption changes and resets.
    sequence: counts the frames made for this session. A gap means dropped frames.
    pts, time_base: their product is the time since the stream's start in seconds, exact.
    width, height: pixels. Rows start at the top.
    payload_bytes: size of the payload.
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
        """The header of a binary message, and a view of its payload. Raises `ProtocolError`."""
        if len(message) < HEADER_BYTES:
            raise _bad_frame(f"a binary message has {len(message)} bytes, less than a header's {HEADER_BYTES}")
        (magic, version, kind, start, generation, sequence, pts, numerator, denominator, width, height, size) = (
            _HEADER.unpack_from(message)
        )
        if magic != MAGIC or version != VERSION:
            raise _bad_frame(f"a binary message starts with {magic!r}, version {version}, which is not a frame")
        if kind >= len(FORMATS) or denominator == 0:
            raise _bad_frame(f"a frame has format {kind} and a time base of {numerator}/{denominator}")
        if start < HEADER_BYTES or len(message) != start + size:
            raise _bad_frame(f"a frame has {len(message)} bytes, its header says {start} + {size}")
        header = cls(FORMATS[kind], generation, sequence, pts, Fraction(numerator, denominator), width, height, size)
        return header, memoryview(message)[start:]


def _bad_frame(problem: str) -> ProtocolError:
    return ProtocolError("bad_frame", problem, "use a client and a server of one version of the protocol")
