"""Reading files of an untrusted folder."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from t2v_edge.errors import CheckpointError

MAX_FILES = 1024


def plain_file(root: Path, relative: str, max_bytes: int) -> Path | None:
    """The regular file `relative` of folder `root`, or None if it does not exist.

    Raises `CheckpointError` for an absolute path, a path that leaves the folder, a symbolic link in it, or a file of
    more than `max_bytes`.
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
        raise CheckpointError(
            f"{relative} has {status.st_size} bytes, at most {max_bytes} are allowed; is it the right file?"
        )
    return path


def needed_file(root: Path, relative: str, max_bytes: int, remedy: str) -> Path:
    """`plain_file`, or a `CheckpointError` that ends in `remedy` where it is absent."""
    path = plain_file(root, relative, max_bytes)
    if path is None:
        raise CheckpointError(f"checkpoint {root} has no {relative}; {remedy}")
    return path


def folder_sha256(root: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder, byte-compiled code aside, in name order."""
    found = [p for p in root.rglob("*") if "__pycache__" not in p.parts]
    for path in found:
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            what = "a symbolic link" if path.is_symlink() else "not a regular file"
            raise CheckpointError(f"{path.relative_to(root)} is {what}; keep plain files in a checkpoint")
    names = sorted(p.relative_to(root).as_posix() for p in found if p.is_file())
    if len(names) > MAX_FILES:
        raise CheckpointError(
            f"checkpoint {root} holds {len(names)} files, at most {MAX_FILES} are allowed; is it the right folder?"
        )
    total = hashlib.sha256()
    for name in names:
        digest = hashlib.sha256()
        with open(root / name, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        total.update(f"{name}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()
