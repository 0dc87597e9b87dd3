"""Writers of files and folders that appear whole or not at all: temporary sibling, fsync, rename.

A temporary is named ``.NAME.partial-RANDOM`` plus the target's suffix, and is for its user alone. Its writer holds a
lock on it, so that the next writer of the same target can recognise the leftovers of a dead run. The kind of a target
says what may be replaced, see `t2v_edge.util.targets`.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

from t2v_edge.errors import T2VError
from t2v_edge.util.targets import TargetKind, check_target

if sys.platform != "win32":
    import fcntl

_PARTIAL, _PREVIOUS = "partial", "previous"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextmanager
def atomic_file(target: Path, kind: TargetKind, late: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `target`. Rename it into place on success, remove it on any exception.

    Raises the kind's error for a target that is not ours, now or at the end. At the end the file stays, under another
    name. An `OSError` becomes the kind's error too, except in caches.

    late: the work is done already, and the target was checked before it. Then it is checked at the end alone.
    """
    with _atomic(target, kind, late, _new_file, fsync_path, os.replace) as temporary:
        yield temporary


def write_atomic(target: Path, data: bytes, kind: TargetKind, late: bool = False) -> None:
    """Write `data` to `target` atomically, see `atomic_file`."""
    with atomic_file(target, kind, late) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(target: Path, kind: TargetKind, late: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, and swap it into place on success. Else as `atomic_file`.

    On Linux the swap is one atomic exchange (renameat2), so `target` is always whole. Elsewhere it is two renames. A
    run killed between them leaves the old folder as a temporary, which the next writer puts back.
    """
    with _atomic(target, kind, late, lambda path: path.mkdir(0o700), fsync_tree, _swap) as temporary:
        yield temporary


@contextmanager
def _atomic(
    shown: Path,
    kind: TargetKind,
    late: bool,
    create: Callable[[Path], Any],
    flush: Callable[[Path], None],
    move: Callable[[Path, Path], Any],
) -> Iterator[Path]:
    target = Path(os.path.realpath(shown))
    try:
        if not late:
            check_target(shown, kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        temporary = _sibling(target)
        create(temporary)
        lock = _lock(temporary)
        try:
            yield temporary
            _set_modes(temporary, target, kind)
            flush(temporary)
            _check_again(temporary, target, kind)
            move(temporary, target)
            fsync_path(target.parent)
        finally:
            _remove(temporary)
            _unlock(lock)
    except OSError as error:
        if kind.private:
            raise
        raise kind.error(f"{shown} cannot be written ({error}); check the space and permissions there") from error


def _new_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600))


def _sibling(target: Path, kind: str = _PARTIAL) -> Path:
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(6)}{target.suffix}")


def _set_modes(temporary: Path, target: Path, kind: TargetKind) -> None:
    """Give an output the mode of what it replaces, or the usual one. Files of a cache stay their user's."""
    if kind.private:
        for path in temporary.rglob("*") if kind.folder else ():
            path.chmod(0o700 if path.is_dir() else 0o600)
    elif target.exists() and target.is_dir() == kind.folder:
        temporary.chmod(stat.S_IMODE(target.stat().st_mode))
    else:
        mode = _usual_mode(target)
        special = stat.S_IMODE(temporary.stat().st_mode) & ~0o777  # such as a group for all files of a folder
        temporary.chmod(special | mode | ((mode & 0o444) >> 2 if kind.folder else 0))


def _usual_mode(target: Path) -> int:
    """The mode of a new file beside `target`. A probe tells it: to ask for the umask is to set it, for all threads."""
    probe = _sibling(target)
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _check_again(temporary: Path, target: Path, kind: TargetKind) -> None:
    """Check the target after the work. If a person has used it meanwhile, the work stays under another name."""
    try:
        check_target(target, kind)
    except T2VError as error:
        count = 1
        while os.path.lexists(kept := target.with_name(f"{target.stem}-{count}{target.suffix}")):
            count += 1
        os.rename(temporary, kept)
        raise kind.error(f"{error}. The finished work is in {kept}") from error


def remove_stale(target: Path) -> None:
    """Remove the temporaries of dead writers of `target`, and put back the old folder of an interrupted swap.

    A person's file of a similar name is not touched. Ours have a random number of 12 digits and belong to this user.
    """
    for path in _ours_beside(target, _PREVIOUS):
        if os.path.lexists(target):
            _remove(path)
        else:
            os.rename(path, target)
    for path in _ours_beside(target, _PARTIAL):
        lock = _lock(path)
        if lock is not None:
            _remove(path)
            _unlock(lock)


def _ours_beside(target: Path, kind: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(target.name)}\.{kind}-[0-9a-f]{{12}}{re.escape(target.suffix)}")
    found = []
    with os.scandir(target.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and not entry.is_symlink():
                if sys.platform == "win32" or entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    found.append(Path(entry.path))
    return found


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
        old = _sibling(target, _PREVIOUS)
        os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old, target)
            raise
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically. False if the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
