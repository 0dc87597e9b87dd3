"""What the tests of examples/ar_vr share: where it is, and a server whose frames tell their generation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.t2v_edge.live_samples import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/ar_vr"
BUILD_S = 180  # a compiler on a busy machine


def build(*command):
    """Run a compiler; what it says is the test's message."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr


class Process:
    """A program that is talked to over its standard streams."""

    def __init__(self, *command, **options) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            **options,
        )

    def say(self, line):
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def hear(self):
        return self._process.stdout.readline().decode().strip()

    def hear_error(self):
        return self._process.stderr.readline().decode().strip()

    def end(self):
        """(exit code, rest of stdout as bytes, stderr) once its standard input has ended."""
        out, err = self._process.communicate(timeout=TIMEOUT_S)
        return self._process.returncode, out, err.decode()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()
