"""Captions to verify an export with: a default set, and the reader of the user's own file."""

from __future__ import annotations

from pathlib import Path

from t2v_edge.errors import UsageError

MIN_CAPTIONS, MAX_CAPTIONS = 12, 256
MAX_FILE_BYTES = 1 << 20

DEFAULT_CAPTIONS = (
    "a person is dribbling a basketball",
    "一个人正在打篮球",
    "a woman in a red shirt and blue jeans is running",
    "a man with brown hair is walking",
    "someone jumps up and down",
    "一个穿红色上衣的人正在跳舞",
    "a person is playing soccer in front of a green wall",
    "a man is bending down to lift something",
    "a woman is washing a window",
    "一个人在跑步",
    "jogging",
    "a dark-skinned man in a white shirt and black trousers is directing traffic",
)


def read_captions(path: Path) -> tuple[str, ...]:
    """The captions of a UTF-8 text file, one a line, `MIN_CAPTIONS` to `MAX_CAPTIONS`. Raises `UsageError`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(
                f"captions file {path} is larger than {MAX_FILE_BYTES} bytes; give a dozen captions, one a line"
            )
        lines = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"captions file {path} cannot be read: {error}; give UTF-8 text, one caption a line"
        ) from error
    if not MIN_CAPTIONS <= len(lines) <= MAX_CAPTIONS:
        raise UsageError(
            f"captions file {path} holds {len(lines)} captions; give {MIN_CAPTIONS} to {MAX_CAPTIONS}, one a line"
        )
    return lines
