"""A bundle's files in a folder or a zip. Neither is trusted: names, kinds and sizes are checked before bytes are read.

Nothing is extracted. A `BundleError` refuses symbolic links, special files, names outside the bundle, repeated names,
and zips that unpack to more than they declare.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Protocol

from t2v_edge.bundle.manifest import FILE_NAME, MAX_FILES, MAX_TOTAL_BYTES, check_file_name, require
from t2v_edge.errors import BundleError

CHUNK_BYTES = 1 << 20
MAX_RATIO = 200
_RATIO_FLOOR = 1 << 20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError, OSError)
"""The errors of Python's zip reader for a damaged file."""


class Archive(Protocol):
    """The files of a bundle by name.

    sizes: name -> declared size in bytes.
    chunks: the bytes of a file, never more than declared.
    """

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def chunks(self, name: str) -> Iterator[bytes]: ...

    def close(self) -> None: ...


def open_archive(path: Path) -> Archive:
    """Open a bundle's folder or zip. Raises `BundleError` for anything else."""
    if path.is_dir():
        return FolderArchive(path)
    require(path.exists(), f"{path}: no such bundle; make one with t2v-edge export CHECKPOINT -o {path}")
    require(
        path.is_file() and zipfile.is_zipfile(path), f"{path} is neither a bundle folder nor a whole zip; copy it again"
    )
    return ZipArchive(path)


class FolderArchive:
    """A bundle as a folder of regular files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sizes: Mapping[str, int] = dict(self._scan(folder, ""))

    def _scan(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        count = 0
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            name = check_file_name(prefix + entry.name)
            count += 1
            require(count <= MAX_FILES, f"{self._folder} holds more than {MAX_FILES} files; it is not a bundle")
            require(not entry.is_symlink(), f"{self._folder}: {name} is a symbolic link; put the file itself there")
            if entry.is_dir(follow_symlinks=False):
                yield from self._scan(Path(entry.path), name + "/")
                continue
            info = entry.stat(follow_symlinks=False)
            require(stat.S_ISREG(info.st_mode), f"{self._folder}: {name} is not a regular file; remove it")
            yield name, info.st_size

    def chunks(self, name: str) -> Iterator[bytes]:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            with open(os.open(self._folder / name, flags), "rb") as file:
                left = self.sizes[name]
                while left > 0:
                    chunk = file.read(min(CHUNK_BYTES, left))
                    require(bool(chunk), f"{name} became shorter while it was read; copy the bundle again")
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise BundleError(f"{name} cannot be read ({error}); check the file's permissions") from error

    def close(self) -> None:
        """Nothing is held open."""


class ZipArchive:
    """A bundle as a zip, its files at the top or in one folder."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise BundleError(f"{path} is a damaged zip ({error}); copy the bundle again") from error
        try:
            self._entries = self._index(path)
        except BaseException:
            self._zip.close()
            raise
        self.sizes: Mapping[str, int] = {name: entry.file_size for name, entry in self._entries.items()}

    def _index(self, path: Path) -> dict[str, zipfile.ZipInfo]:
        entries = self._zip.infolist()
        require(len(entries) <= 2 * MAX_FILES, f"{path} holds {len(entries)} entries; it is not a bundle")
        files: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            # zipfile cuts a name at a NUL and turns separators, so the stored name is checked.
            require(
                entry.orig_filename == entry.filename,
                f"{path}: {entry.orig_filename!r} is not an allowed name; zip it again",
            )
            name = check_file_name(entry.filename.rstrip("/") if entry.is_dir() else entry.filename)
            self._check_entry(path, name, entry)
            require(name not in files, f"{path}: {name} stands twice; zip the bundle again")
            if not entry.is_dir():
                files[name] = entry
        require(
            sum(e.file_size for e in files.values()) <= MAX_TOTAL_BYTES,
            f"{path} unpacks to more than {MAX_TOTAL_BYTES} bytes; it is not a bundle",
        )
        require(
            sum(e.compress_size for e in files.values()) <= path.stat().st_size,
            f"{path}: its entries overlap, as in a zip bomb; do not use it",
        )
        return _without_top_folder(files)

    @staticmethod
    def _check_entry(path: Path, name: str, entry: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        require(
            kind in (0, stat.S_IFREG, stat.S_IFDIR),
            f"{path}: {name} is a link or special file; put the file itself there",
        )
        require(not entry.flag_bits & 1, f"{path}: {name} is encrypted; zip the bundle without a password")
        require(
            entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            f"{path}: {name} is compressed in an uncommon way; zip with store or deflate",
        )
        bomb = entry.file_size > _RATIO_FLOOR and entry.file_size > MAX_RATIO * max(1, entry.compress_size)
        require(not bomb, f"{path}: {name} unpacks to over {MAX_RATIO} times its size, as in a zip bomb; do not use it")

    def chunks(self, name: str) -> Iterator[bytes]:
        entry = self._entries[name]
        left = entry.file_size
        try:
            with self._zip.open(entry) as file:
                while left > 0:
                    chunk = file.read(min(CHUNK_BYTES, left))
                    require(bool(chunk), f"{name} is shorter than the zip declares; copy the bundle again")
                    left -= len(chunk)
                    yield chunk
                require(not file.read(1), f"{name} is longer than the zip declares; do not use this bundle")
        except DAMAGED as error:
            raise BundleError(f"{name} is damaged in the zip ({error}); copy the bundle again") from error

    def close(self) -> None:
        self._zip.close()


def _without_top_folder(files: dict[str, Any]) -> dict[str, Any]:
    """The files without a folder that all names start with. A zip of the bundle's folder has one."""
    top: Optional[str] = next(iter(files)).split("/")[0] + "/" if files else None
    if FILE_NAME in files or top is None or not all(name.startswith(top) for name in files):
        return files
    return {name[len(top) :]: entry for name, entry in files.items()}
