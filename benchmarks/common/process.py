"""A fresh process for each measurement: its environment, its memory, its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2v_edge.util.memory import process_memory

ROOT = Path(__file__).resolve().parents[2]
# Settings of a shell that would speed up, slow down or limit one contender and not another.
CLEARED = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "KMP_AFFINITY",
    "OMP_WAIT_POLICY",
)
MEGABYTE = 1 << 20


class ProcessError(Exception):
    """A measuring process failed; the message is the last line it wrote."""


def environment(work: Path) -> dict[str, str]:
    """The environment of a measuring process: caches in `work`, no thread or BLAS settings of the shell."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "calibration"), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "T2V_EDGE_CACHE": str(work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }


def measure(module: str, arguments: Sequence[str], work: Path, timeout_s: float) -> dict[str, Any]:
    """Run ``python -m module arguments`` and read the JSON object on its last line. Raises `ProcessError`."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, env=environment(work), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProcessError(f"not done after {timeout_s:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        errors = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ProcessError(errors[-1][:300])
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def memory() -> tuple[float, float]:
    """This process's resident memory now and at its highest, in MiB."""
    found = process_memory()
    return found.resident_bytes / MEGABYTE, found.peak_bytes / MEGABYTE


def without_telemetry() -> None:
    """Keep openvino and nncf from telling their makers that they were imported: without this package they do not."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
