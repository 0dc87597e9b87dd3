"""The cache of engines that were built here, by all that they depend on.

Loading an engine runs its code. So an entry counts only if it is the user's own file that nobody else may write, has
the whole key that is asked for, and has the bytes that were written. Each entry is one file: a mark, the length of a
JSON header (key, SHA-256 and size of the engine), the header, the engine.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

from t2v_edge.errors import BundleError
from t2v_edge.util.cache import cache_folder
from t2v_edge.util.files import write_atomic
from t2v_edge.util.strict_json import dumps, loads
from t2v_edge.util.targets import CACHE_FILE

if sys.platform != "win32":
    import fcntl

FOLDER = "engines"
FORMAT = 1
MARK = b"T2VENGIN"
MAX_HEADER_BYTES = 1 << 16
MAX_ENGINE_BYTES = 4 << 30

Key = Mapping[str, Any]


class EngineCache:
    """Engines by key, which is any JSON object. Without a folder it keeps nothing."""

    def __init__(self, folder: Optional[Path]) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> EngineCache:
        """The cache in the user's cache folder, which has mode 0700."""
        return cls(cache_folder(FOLDER))

    def get(self, key: Key) -> Optional[bytes]:
        """The entry of exactly this key, undamaged and this user's own; else None."""
        if self.folder is None:
            return None
        try:
            with _own_file(self._path(key)) as (handle, size):
                return _read(handle, size, key)
        except (OSError, BundleError):
            return None

    def get_or_make(
        self, key: Key, make: Callable[[], bytes], waiting: Optional[Callable[[], None]] = None
    ) -> tuple[bytes, bool]:
        """The entry, and whether the cache had it.

        Of several processes one makes the entry. The others call `waiting` and wait. If that process dies, the next one
        makes the entry.
        """
        found = self.get(key)
        if found is not None or self.folder is None:
            return (make(), False) if found is None else (found, True)
        with _locked(self._path(key).with_suffix(".lock"), waiting):
            found = self.get(key)
            if found is not None:
                return found, True
            made = make()
            self.put(key, made)
            return made, False

    def put(self, key: Key, data: bytes) -> None:
        """Keep an entry. In a folder that cannot be written it keeps nothing, and raises nothing."""
        if self.folder is None:
            return
        header = dumps({"key": dict(key), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
        try:
            write_atomic(self._path(key), MARK + len(header).to_bytes(4, "little") + header + data, CACHE_FILE)
        except OSError:
            pass

    def _path(self, key: Key) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(dumps(dict(key))).hexdigest()[:40]}.engine"


def any_built() -> bool:
    """Whether this user has built any engine. Cheap, and needs no GPU."""
    folder = cache_folder(FOLDER)
    return folder is not None and next(folder.glob("*.engine"), None) is not None


def _read(handle: int, size: int, key: Key) -> Optional[bytes]:
    with os.fdopen(os.dup(handle), "rb") as file:
        start = file.read(len(MARK) + 4)
        length = int.from_bytes(start[len(MARK) :], "little")
        if start[: len(MARK)] != MARK or len(start) != len(MARK) + 4 or length > MAX_HEADER_BYTES:
            return None
        text = file.read(length)
        header = loads(text, "an engine's header")
        expected = size - len(start) - length
        if not isinstance(header, dict) or header.get("key") != dict(key) or header.get("bytes") != expected:
            return None
        if dumps(header) != text:  # it reads the same, but other bytes were written
            return None
        data = file.read(expected)
    return data if header.get("sha256") == hashlib.sha256(data).hexdigest() else None


@contextmanager
def _own_file(path: Path) -> Iterator[tuple[int, int]]:
    """An open file and its size. Raises `OSError` unless it is a regular file that only this user may write."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_ENGINE_BYTES:
            raise OSError(f"{path} is no engine file")
        if sys.platform != "win32" and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            raise OSError(f"{path} may have been written by someone else")
        yield handle, found.st_size
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path, waiting: Optional[Callable[[], None]]) -> Iterator[None]:
    """A lock among processes, on systems with file locks. A process that dies frees its lock."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if waiting is not None:
                    waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
