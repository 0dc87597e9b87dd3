"""The runner of an export's passes: it takes the files of a pass from the store, or makes and stores them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

import t2v_calibration
import t2v_edge
import t2v_export
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.spec import StageSpec
from t2v_edge.util.machine import machine, versions
from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.exporter.options import ExportOptions
from t2v_export.store import Files, PassStore, content_key

Advance = Callable[[], object]

TOOLS = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")
"""Packages that a result depends on; `versions` adds Python and this one."""


class PassRunner:
    """Finds or makes the files of passes.

    The reader of a result reads the same files whether they were made or found. So a resumed export ends with the same
    bytes. A key holds `inputs`, what the pass names, the versions of tools, the source of the three packages, and the
    machine: processors differ in their float sums. `found` counts the passes that were in the store.
    """

    def __init__(self, store: PassStore, show: bool, **inputs: Any) -> None:
        self.found = 0
        self._store, self._hidden = store, None if show else True
        self._base = {**inputs, "tools": versions(*TOOLS), "machine": machine(), "source": source_sha256()}

    def do(self, name: str, steps: int, make: Callable[[Advance], Files], **parts: Any) -> Files:
        """The files of the pass `name`, made from `parts` (JSON values; bytes count by their hash).

        `make` receives a function to call after each of its `steps`. A pass that raises stores nothing.
        """
        key = content_key(name=name, **self._base, **parts)
        files = self._store.load(key)
        if files is None:
            with tqdm(total=steps, desc=name, file=sys.stderr, disable=self._hidden, leave=False, position=1) as bar:
                files = dict(make(bar.update))
            self._store.save(key, files)
        else:
            self.found += 1
        return files


@dataclass(frozen=True, eq=False)
class PassContext:
    """The fixed inputs of a pass: what is exported, how, and the pass's own `name` and `stage` (empty for all)."""

    runner: PassRunner
    checkpoint: Checkpoint
    tokenizer: CaptionTokenizer
    profile: DeviceProfile
    options: ExportOptions
    name: str = ""
    stage: str = ""

    @property
    def specs(self) -> Mapping[str, StageSpec]:
        """The inputs and outputs of every stage."""
        return self.checkpoint.specs

    @property
    def spec(self) -> StageSpec:
        """The inputs and outputs of the pass's stage."""
        return self.checkpoint.specs[self.stage]

    def do(self, steps: int, make: Callable[[Advance], Files], **parts: Any) -> Files:
        """The files of this pass, as `PassRunner.do` gives them."""
        return self.runner.do(self.name, steps, make, **parts)


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
