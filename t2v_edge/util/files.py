"""Writers of files and folders that appear whole or not at all: temporary sibling, fsync, rename.

A temporary is named ``.NAME.partial-RANDOM`` plus the target's suffix. Its writer holds a lock on it, so that the next
writer of the same target can recognise the leftovers of a dead run.
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
from typing import Any, Callable, Optional

if sys.platform != "win32":
    import fcntl

MARK = ".partial-"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary file beside `target`. Rename it into place on success, remove it on any exception."""
    with _atomic(target, Path.touch, fsync_path, os.replace) as temporary:
        yield temporary


def write_atomic(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`. Swap it into place on success, remove it on any exception.

    On Linux the swap is one atomic exchange (renameat2), so `target` is always whole. Elsewhere it is two renames. A
    run killed between them leaves the old folder as a temporary, which the next writer puts back.
    """
    with _atomic(target, Path.mkdir, fsync_tree, _swap) as temporary:
        yield temporary


@contextmanager
def _atomic(
    target: Path, create: Callable[[Path], Any], flush: Callable[[Path], None], move: Callable[[Path, Path], Any]
) -> Iterator[Path]:
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    temporary = target.with_name(f".{target.name}{MARK}{secrets.token_hex(6)}{target.suffix}")
    create(temporary)
    lock = _lock(temporary)
    try:
        yield temporary
        flush(temporary)
        move(temporary, target)
        fsync_path(target.parent)
    finally:
        _remove(temporary)
        _unlock(lock)


def remove_stale(target: Path) -> None:
    """Remove the temporaries of dead writers of `target`, and put back the old folder of an interrupted swap."""
    old = _previous(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    elif old.exists():
        shutil.rmtree(old, ignore_errors=True)
    for path in target.parent.glob(f".{_escape(target.name)}{MARK}*"):
        lock = _lock(path)
        if lock is None:
            continue
        _remove(path)
        _unlock(lock)


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk. For folders it does nothing if the platform cannot."""
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
    """Exchange two names atomically. False if the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(path: Path) -> Optional[int]:
    """Lock `path` and return the handle. None if another process holds it or the platform has no locks."""
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
