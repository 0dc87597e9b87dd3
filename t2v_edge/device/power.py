"""Measurement of power with the device's tool: tegrastats on a Jetson, nvidia-smi for a desktop GPU.

The tool runs as a process and writes a line every `INTERVAL_MS`. A thread reads the lines during another measurement,
and the process is ended afterwards. Without a working tool there is no figure, and no error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Callable, Optional

INTERVAL_MS = 200
STOP_S = 2.0
"""Seconds that a tool has to end before it is killed."""

MAX_LINE = 4096
MAX_RAILS = 32

# Name, then milliwatts now. The mean follows and, from JetPack 7.2, the highest. JetPack 5 and later write the unit.
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]{1,31}) (-?\d{1,7})mW(?:/-?\d{1,7}mW){0,2}(?!\S)")
_RAM = re.compile(r"\bRAM (\d{1,8})/\d{1,8}MB")

NOT_CONNECTED = "NC"
TOTALS = ("VIN", "VDD_IN")
"""Rails that feed all others: the carrier board's input (AGX Thor's kit), the module's input (Orin NX and Nano). An AGX
Orin has neither. Its rails are reported one by one, without a total."""

BOARD = "board"
"""The name of nvidia-smi's figure, the power of the graphics board. From Ampere on it is a mean over a second."""

_QUERY = "power.draw,memory.used"


@dataclass(frozen=True)
class PowerReading:
    """One line of a tool.

    rails_w: watts by rail.
    memory_mib: memory of the device that all processes use. On a Jetson it is the system's memory.
    """

    rails_w: Mapping[str, float]
    memory_mib: Optional[float] = None


@dataclass(frozen=True)
class PowerTool:
    """A program that writes readings. totals: rails of the whole device, the widest first."""

    name: str
    command: tuple[str, ...]
    parse: Callable[[str], Optional[PowerReading]]
    totals: tuple[str, ...]


@dataclass(frozen=True)
class Power:
    """The power of one run.

    tool: None if no tool is available.
    readings: the number of readings.
    mean_w, max_w: mean and highest watts by rail.
    total: the rail that feeds all others, if there is one.
    device_memory_mib: the highest memory in use on the device.
    """

    tool: Optional[str] = None
    readings: int = 0
    mean_w: Mapping[str, float] = field(default_factory=dict)
    max_w: Mapping[str, float] = field(default_factory=dict)
    total: Optional[str] = None
    device_memory_mib: Optional[float] = None

    @property
    def total_w(self) -> Optional[float]:
        """Mean watts of the whole device, if one rail feeds all others."""
        return None if self.total is None else self.mean_w[self.total]

    def to_json(self) -> dict[str, Any]:
        return {
            "tool": self.tool,
            "readings": self.readings,
            "mean_w": dict(self.mean_w),
            "max_w": dict(self.max_w),
            "total": self.total,
            "total_w": self.total_w,
            "device_memory_mib": self.device_memory_mib,
        }


def parse_tegrastats(line: str) -> Optional[PowerReading]:
    """Read a line of tegrastats of JetPack 5, 6 or 7. None if it names no rail.

    ``VDD_IN 3462mW/3522mW/3582mW`` is the power now, the mean and the highest since the start (not in all versions).
    """
    rails = {name: int(now) / 1000 for name, now in _RAIL.findall(line)[:MAX_RAILS] if name != NOT_CONNECTED}
    if not rails:
        return None
    memory = _RAM.search(line)
    return PowerReading(rails, None if memory is None else float(memory[1]))


def parse_nvidia_smi(line: str) -> Optional[PowerReading]:
    """Read a line of `_QUERY` as csv without units. A figure that the GPU lacks is ``[N/A]`` or the like."""
    values = [_number(part) for part in line.split(",")]
    if len(values) != len(_QUERY.split(",")) or values == [None, None]:
        return None
    watts, memory = values
    return PowerReading({} if watts is None else {BOARD: watts}, memory)


def _number(text: str) -> Optional[float]:
    return float(text) if re.fullmatch(r"\s*\d{1,9}(\.\d{1,6})?\s*", text) else None


def find_tool(gpu: bool, which: Callable[[str], Optional[str]] = shutil.which) -> Optional[PowerTool]:
    """The tool for this device, or None. gpu: whether engines run on a desktop GPU; otherwise nvidia-smi is no use."""
    if which("tegrastats"):
        return PowerTool("tegrastats", ("tegrastats", "--interval", str(INTERVAL_MS)), parse_tegrastats, TOTALS)
    if gpu and which("nvidia-smi"):
        # The first device that CUDA sees.
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        command = (
            "nvidia-smi",
            f"--id={device}",
            f"--query-gpu={_QUERY}",
            "--format=csv,noheader,nounits",
            f"--loop-ms={INTERVAL_MS}",
        )
        return PowerTool("nvidia-smi", command, parse_nvidia_smi, (BOARD,))
    return None


def own_gpu_memory_mib(which: Callable[[str], Optional[str]] = shutil.which) -> Optional[float]:
    """This process's memory on GPUs, from nvidia-smi. None if it does not say, as inside most containers."""
    if not which("nvidia-smi"):
        return None
    command = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return sum_own_memory(done.stdout, os.getpid())


def sum_own_memory(text: str, pid: int) -> Optional[float]:
    """The sum of a process's lines ``pid, MiB``. There is one for each GPU that it uses. None without any."""
    lines = (line.partition(",") for line in text.splitlines())
    found = [_number(memory) for number, _, memory in lines if number.strip() == str(pid)]
    known = [value for value in found if value is not None]
    return sum(known) if known else None


class PowerSampler:
    """A reader of a tool's lines, from the entry of its ``with`` block to the exit.

    It raises nothing. If the tool cannot be started or says nothing useful, `power` has no readings.
    """

    def __init__(self, tool: Optional[PowerTool]) -> None:
        self._tool = tool
        self._process: Optional[subprocess.Popen[str]] = None
        self._thread: Optional[threading.Thread] = None
        self._readings = 0
        self._rails: dict[str, tuple[int, float, float]] = {}  # count, sum and highest by rail
        self._memory: Optional[float] = None

    @property
    def power(self) -> Power:
        """All readings so far. Complete after the exit."""
        if self._tool is None:
            return Power()
        rails = dict(self._rails)
        return Power(
            self._tool.name,
            self._readings,
            {name: total / n for name, (n, total, _) in rails.items()},
            {name: highest for name, (_, _, highest) in rails.items()},
            next((name for name in self._tool.totals if name in rails), None),
            self._memory,
        )

    def add(self, reading: PowerReading) -> None:
        """Count one reading."""
        self._readings += 1
        for name, watts in reading.rails_w.items():
            if name in self._rails or len(self._rails) < MAX_RAILS:
                n, total, highest = self._rails.get(name, (0, 0.0, watts))
                self._rails[name] = (n + 1, total + watts, max(highest, watts))
        if reading.memory_mib is not None:
            self._memory = max(self._memory or 0.0, reading.memory_mib)

    def __enter__(self) -> PowerSampler:
        if self._tool is not None:
            try:
                self._process = subprocess.Popen(
                    self._tool.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    errors="replace",
                )
            except OSError:
                return self
            self._thread = threading.Thread(
                target=self._read, args=(self._process.stdout, self._tool.parse), name="power", daemon=True
            )
            self._thread.start()
        return self

    def _read(self, lines: IO[str], parse: Callable[[str], Optional[PowerReading]]) -> None:
        while True:
            try:
                line = lines.readline(MAX_LINE)
            except (OSError, ValueError):
                return
            if not line:
                return
            reading = parse(line)
            if reading is not None:
                self.add(reading)

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        for stop in (process.terminate, process.kill):
            stop()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
                break
        if self._thread is not None:
            self._thread.join(STOP_S)
        # If a child of the tool still holds the pipe, the thread waits, and closing would wait as well.
        if process.stdout is not None and self._thread is not None and not self._thread.is_alive():
            process.stdout.close()
