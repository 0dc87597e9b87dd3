"""The passes of an export, one after the other: each is done, or found finished in the store; progress is shown."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

import t2v_calibration
import t2v_edge
import t2v_export
from t2v_edge.util.machine import machine, versions
from t2v_export.store import PassStore, content_key

Files = Mapping[str, bytes]
Advance = Callable[[], object]

TOOLS = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")
"""Packages that a result depends on; `versions` adds Python and this one."""


class PassRunner:
    """Runs passes. `passes`: how many there will be, for the bar; `show`: whether there is one (on stderr).

    Every result is files, and whoever asked reads it from them, whether it was made or found: so a resumed export
    ends with the same bytes by construction. Keys hold `inputs`, the versions of tools, the machine (float sums differ
    among processors) and the source of the toolchain itself, besides what a pass names.
    """

    def __init__(self, store: PassStore, passes: int, show: bool, **inputs: Any) -> None:
        self.found: list[str] = []
        self._store = store
        self._base = {**inputs, "tools": versions(*TOOLS), "machine": machine(), "source": source_sha256()}
        self._hidden = None if show else True
        self._bar = tqdm(total=passes, desc="export", unit="pass", file=sys.stderr, disable=self._hidden, leave=False)

    def do(self, name: str, steps: int, make: Callable[[Advance], Files], **parts: Any) -> dict[str, bytes]:
        """The files of the pass `name`, made from `parts` (JSON values; bytes count by their hash).

        `make` is given what to call after each of its `steps`. Nothing is kept of a pass that raises.
        """
        key = content_key(name=name, **self._base, **parts)
        self._bar.set_description(f"export: {name}")
        files = self._store.load(key)
        if files is None:
            with tqdm(total=steps, desc=name, file=sys.stderr, disable=self._hidden, leave=False, position=1) as bar:
                files = dict(make(bar.update))
            self._store.save(key, files)
        else:
            self.found.append(name)
            self._bar.set_postfix_str(f"{len(self.found)} found finished")
        self._bar.update()
        return files

    def __enter__(self) -> PassRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@cache
def source_sha256() -> str:
    """SHA-256 of the Python source of the three packages that results come from."""
    digest = hashlib.sha256()
    for package in (t2v_edge.__file__, t2v_calibration.__file__, t2v_export.__file__):
        root = Path(str(package)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
