"""The store of finished work, by what it was made from: a stopped export resumes from it.

A key is the SHA-256 of all that a result depends on, so a stale result cannot be found. An entry is a folder in the
user's cache. It is written whole or not at all, with the hash of each file. A damaged entry is not found. The least
recently used entries are removed when all together exceed `MAX_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2v_edge.util.cache import cache_folder
from t2v_edge.util.files import atomic_folder
from t2v_edge.util.targets import CACHE_FOLDER

FOLDER = "passes"
MAX_BYTES = 4 << 30
INDEX = "sha256.json"  # of an entry; no result has a file of this name

_NAME = re.compile(r"[0-9a-f]{32}(\.work)?")

Files = Mapping[str, bytes]


def content_key(**parts: Any) -> str:
    """The SHA-256 of named parts: JSON values, with bytes anywhere in them, which count by their own hash."""
    described = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_sha256)
    return hashlib.sha256(described.encode()).hexdigest()


class PassStore:
    """Results by key in `folder`. With None nothing is stored and nothing is found."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> PassStore:
        """The store in the user's cache folder. Without such a folder it stores nothing."""
        return cls(cache_folder(FOLDER))

    def load(self, key: str) -> dict[str, bytes] | None:
        """The files of a result by name; None where it is absent or damaged."""
        folder = self._entry(key)
        if folder is None or not folder.is_dir():
            return None
        try:
            os.utime(folder)
            found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        except OSError:
            return None
        index = found.pop(INDEX, None)
        return {name: found[name] for name in sorted(found)} if index == _index(found) else None

    def save(self, key: str, files: Files) -> None:
        """Store a result. A cache that cannot be written is ignored."""
        folder = self._entry(key)
        if folder is None:
            return
        try:
            with atomic_folder(folder, CACHE_FOLDER) as partial:
                for name, data in files.items():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(data)
                (partial / INDEX).write_bytes(_index(files))
            self._make_room(folder)
        except OSError:
            return

    def workplace(self, key: str) -> Path | None:
        """The folder for unfinished state of the work `key`. It stays when the work is stopped."""
        if self.folder is None:
            return None
        path = self.folder / f"{key[:32]}.work"
        path.mkdir(0o700, parents=True, exist_ok=True)
        return path

    def clear_workplace(self, key: str) -> None:
        """Remove the folder of `workplace`."""
        if self.folder is not None:
            shutil.rmtree(self.folder / f"{key[:32]}.work", ignore_errors=True)

    def _entry(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:32]

    def _make_room(self, newest: Path) -> None:
        assert self.folder is not None
        entries = [p for p in self.folder.iterdir() if p.is_dir() and p != newest and _NAME.fullmatch(p.name)]
        sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in [*entries, newest]}
        total = sum(sizes.values())
        for path in sorted(entries, key=lambda p: p.stat().st_mtime):
            if total <= MAX_BYTES:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _index(files: Files) -> bytes:
    return json.dumps({name: _sha256(files[name]) for name in sorted(files)}).encode()
