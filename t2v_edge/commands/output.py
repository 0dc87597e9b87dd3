"""Output of commands: results on stdout, and progress on stderr if that is a terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Optional, TextIO

from t2v_edge.util.files import write_atomic
from t2v_edge.util.strict_json import dumps
from t2v_edge.util.targets import json_target

REPORT = json_target("the report", "t2v-bench", "t2v-bench-live")
_REFRESH_S = 0.1
_WIDTH = 28


def print_result(data: Any, text: str, as_json: bool, out: Optional[TextIO] = None) -> None:
    """Write `data` as JSON, or `text`. out: stdout if None."""
    stream = sys.stdout if out is None else out
    stream.write(json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) if as_json else text)
    stream.write("\n")
    stream.flush()


def write_report(data: Any, path: Path) -> None:
    """Write `data` as JSON, whole or not at all. Raises `SinkError`."""
    write_atomic(path, dumps(data), REPORT, late=True)


class Progress:
    """A progress bar on stderr, silent if that is not a terminal. total: None for a count without an end."""

    def __init__(self, label: str, total: Optional[int], out: Optional[TextIO] = None, unit: str = "fps") -> None:
        self._out = sys.stderr if out is None else out
        self._label = label
        self._total = total
        self._unit = unit
        self._on = self._out.isatty()
        self._steps = 0
        self._start = self._shown = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self._on and (now - self._shown >= _REFRESH_S or done == self._total):
            self._shown = now
            rate = done / max(1e-9, now - self._start)
            if self._total is None:
                shown = f"{done} frames"
            else:
                filled = _WIDTH * done // self._total
                shown = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{self._total}"
            self._out.write(f"\r{self._label} {shown} {rate:.1f} {self._unit} ")
            self._out.flush()

    def step(self, what: str) -> None:
        """Show that the next of `total` steps begins. what: its name."""
        self._steps += 1
        if self._on:
            self._out.write(f"\r\x1b[K{self._label} [{self._steps}/{self._total}] {what} ...")
            self._out.flush()

    def close(self) -> None:
        if self._on:
            self._out.write("\r\x1b[K")
            self._out.flush()


class PhaseBar:
    """Progress bars of phases that follow each other."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._phase: Optional[str] = None
        self._progress: Optional[Progress] = None

    def advance(self, phase: str, share: float) -> None:
        if phase != self._phase or self._progress is None:
            self.close()
            self._phase, self._progress = phase, Progress(f"{self._label}: {phase}", 100, unit="%/s")
        self._progress.update(int(100 * share))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
