"""Reading files of an untrusted folder, and writing whole ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from t2v_edge.errors import CheckpointError

MAX_FILES = 1024


def plain_file(root: Path, relative: str, max_bytes: int) -> Path | None:
    """The regular file `relative` of folder `root`, or None where there is none.

    Raises `CheckpointError` for an absolute path, one that leaves the folder, a symbolic link on the way, or a
    file of more than `max_bytes`.
    """
    parts = Path(relative).parts
    if Path(relative).is_absolute() or ".." in parts or "\\" in relative or not parts:
        raise CheckpointError(f"{relative!r} leaves the checkpoint folder; keep every file inside it")
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise CheckpointError(f"{relative} is, or lies behind, a symbolic link; copy the file into the checkpoint")
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{relative} is not a regular file")
    if status.st_size > max_bytes:
        raise CheckpointError(f"{relative} has {status.st_size} bytes, at most {max_bytes} are allowed; is it the right file?")
    return path


def needed_file(root: Path, relative: str, max_bytes: int, remedy: str) -> Path:
    """`plain_file`, or a `CheckpointError` that ends in `remedy` where it is absent."""
    path = plain_file(root, relative, max_bytes)
    if path is None:
        raise CheckpointError(f"checkpoint {root} has no {relative}; {remedy}")
    return path


def folder_sha256(root: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder, byte-compiled code aside, in name order."""
    names = sorted(
        p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir() and "__pycache__" not in p.parts
    )
    if len(names) > MAX_FILES:
        raise CheckpointError(f"checkpoint {root} holds {len(names)} files, at most {MAX_FILES} are allowed; is it the right folder?")
    total = hashlib.sha256()
    for name in names:
        digest = hashlib.sha256()
        with open(root / name, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        total.update(f"{name}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write and fsync; atomic where the folder is renamed into place afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and vanishes otherwise.

    What stood at `target` is moved aside and removed only after the new folder is in place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    fresh, aside = (target.parent / f".{target.name}.{mark}.{kind}" for kind in ("new", "old"))
    fresh.mkdir()
    try:
        yield fresh
        if target.exists():
            os.rename(target, aside)
        try:
            os.rename(fresh, target)
        except OSError:
            if aside.exists():
                os.rename(aside, target)
            raise
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
