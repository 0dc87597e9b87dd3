"""Files and folders that appear whole or not at all: temporary sibling, fsync, rename.

A temporary is named ``.NAME.partial-RANDOM`` (with the target's suffix for files) and its writer holds a lock on
it, so that the next writer of the same target can tell a dead run's leftovers from a live one's work.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

if sys.platform != "win32":
    import fcntl

MARK = ".partial-"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it into place on success, remove it on any exception."""
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    temporary = _temporary(target)
    temporary.touch()
    lock = _lock(temporary)
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, target)
        fsync_path(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        _unlock(lock)


def write_atomic(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; swap it into place on success, remove it on any exception.

    On Linux the swap is one atomic exchange (renameat2), so that `target` is always whole. Elsewhere it is two
    renames, and a run killed between them leaves the old folder as a temporary that the next writer puts back.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    temporary = _temporary(target)
    temporary.mkdir()
    lock = _lock(temporary)
    try:
        yield temporary
        fsync_tree(temporary)
        _swap(temporary, target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unlock(lock)


def remove_stale(target: Path) -> None:
    """Remove temporaries that dead writers of `target` left; put an interrupted swap's old folder back."""
    old = _previous(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    elif old.exists():
        shutil.rmtree(old, ignore_errors=True)
    for path in target.parent.glob(f".{_escape(target.name)}{MARK}*"):
        lock = _lock(path)
        if lock is None:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        _unlock(lock)


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk; a platform that cannot sync folders is let off."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        fsync_path(path)
    fsync_path(folder)


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        os.rename(new, target)
    elif not _exchange(new, target):
        old = _previous(target)
        os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}{MARK}{secrets.token_hex(6)}{target.suffix}")


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(path: Path) -> Optional[int]:
    """Lock `path` and return the handle; None where another live process holds it or locks do not exist."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: Optional[int]) -> None:
    if handle is not None:
        os.close(handle)
