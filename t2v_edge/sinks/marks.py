"""Marks at the end of files that sinks write. Only a file with its mark is replaced.

Other programs drop or move a mark when they save a file. So what a person has edited is not ours.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Optional

from t2v_edge.util.targets import TargetKind

_NUMBER = re.compile("%(?:0[1-9])?d")
_PATTERN = re.compile(rf"[^%]*{_NUMBER.pattern}[^%]*")
_NAME = b"t2v-edge"
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_TEXT = b"tEXtSoftware\0" + _NAME
_PNG = struct.pack(">I", len(_TEXT) - 4) + _TEXT + struct.pack(">I", zlib.crc32(_TEXT)) + _IEND
_GIF = b"\x21\xfe" + bytes([len(_NAME)]) + _NAME + b"\0\x3b"
_MP4 = struct.pack(">I", 24) + b"free" + _NAME


def mark_png(data: bytes) -> bytes:
    """A PNG with a text chunk ``Software`` before its end."""
    return data[: -len(_IEND)] + _PNG


def mark_gif(path: Path) -> None:
    """Put a comment before the end of a GIF."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(_GIF)


def mark_mp4(path: Path) -> None:
    """Append a free box to an MP4. It holds the file's size, so that no other file can carry it by chance."""
    with path.open("ab") as file:
        file.write(_MP4 + struct.pack(">Q", file.tell() + len(_MP4) + 8))


def _flaw(path: Path) -> Optional[str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(-min(64, size), 2)
        end = file.read()
    marked = end.endswith((_PNG, _GIF, _MP4 + struct.pack(">Q", size)))
    return None if marked else "t2v-edge did not write it"


VIDEO = TargetKind("the video", _flaw)
PICTURE = TargetKind("the picture", _flaw)


def is_sequence(pattern: str) -> bool:
    """Whether `pattern` names a PNG sequence: its last part, and no other, has a place for a number."""
    return _PATTERN.fullmatch(Path(pattern).name) is not None and "%" not in str(Path(pattern).parent)


def sequence_files(pattern: str) -> list[Path]:
    """The files of a PNG sequence that exist."""
    path = Path(pattern)
    return sorted(p for p in path.parent.iterdir() if in_sequence(p, pattern)) if path.parent.is_dir() else []


def in_sequence(path: Path, pattern: str) -> bool:
    """Whether a PNG sequence has a frame at `path`."""
    if not is_sequence(pattern) or path.resolve().parent != Path(pattern).resolve().parent:
        return False
    before, after = _NUMBER.split(Path(pattern).name)
    number = path.name[len(before) : len(path.name) - len(after)]
    return number.isdecimal() and number.isascii() and Path(pattern).name % int(number) == path.name
