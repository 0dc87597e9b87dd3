"""Power, where the device tells: tegrastats on a Jetson, nvidia-smi where there is a desktop GPU.

Either is started as a process that writes a line every `INTERVAL_MS`. A thread reads them while something else is
measured, and the process is ended afterwards. A tool that is absent, fails or says nothing costs the figure, no more.
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
from types import TracebackType
from typing import IO, Any, Callable, Optional

INTERVAL_MS = 200
STOP_S = 2.0
"""How long a tool is given to end when it is told to, before it is killed."""

MAX_LINE = 4096
MAX_RAILS = 32

# Name, then milliwatts now; the mean and, from JetPack 7.2 on, the highest follow. JetPack 5 and later write the unit.
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]{1,31}) (-?\d{1,7})mW(?:/-?\d{1,7}mW){0,2}(?!\S)")
_RAM = re.compile(r"\bRAM (\d{1,8})/\d{1,8}MB")

NOT_CONNECTED = "NC"
TOTALS = ("VIN", "VDD_IN")
"""Rails that feed all others: the carrier board's input (AGX Thor's kit), the module's (Orin NX and Nano). An AGX Orin
has neither: its rails are given one by one, and no total is made of them."""

BOARD = "board"
"""What nvidia-smi's one figure is called: the whole graphics board's; from Ampere on a mean over a second."""

_QUERY = "power.draw,memory.used"


@dataclass(frozen=True)
class PowerReading:
    """One line of a tool. rails_w: watts by rail. memory_mib: memory in use on the device, by all processes; on a
    Jetson that is the system's."""

    rails_w: Mapping[str, float]
    memory_mib: Optional[float] = None


@dataclass(frozen=True)
class PowerTool:
    """A program that writes readings. totals: rails that stand for the whole device, the widest first."""

    name: str
    command: tuple[str, ...]
    parse: Callable[[str], Optional[PowerReading]]
    totals: tuple[str, ...]


@dataclass(frozen=True)
class Power:
    """Readings of one run: how many, mean and highest watts by rail, and the highest memory in use on the device.

    total: the rail that feeds all others, None where there is none. tool: None where nothing tells power here.
    """

    tool: Optional[str] = None
    readings: int = 0
    mean_w: Mapping[str, float] = field(default_factory=dict)
    max_w: Mapping[str, float] = field(default_factory=dict)
    total: Optional[str] = None
    device_memory_mib: Optional[float] = None

    @property
    def total_w(self) -> Optional[float]:
        """Mean watts of the whole device, where one rail tells."""
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
    """Read a line of tegrastats of JetPack 5, 6 or 7; None where it names no rail.

    ``VDD_IN 3462mW/3522mW/3582mW`` is watts now, their mean and, where given, their highest since it was started.
    """
    rails = {name: int(now) / 1000 for name, now in _RAIL.findall(line)[:MAX_RAILS] if name != NOT_CONNECTED}
    if not rails:
        return None
    memory = _RAM.search(line)
    return PowerReading(rails, None if memory is None else float(memory[1]))


def parse_nvidia_smi(line: str) -> Optional[PowerReading]:
    """Read a line of `_QUERY` as csv without units; what the GPU does not tell is ``[N/A]`` or the like."""
    values = [_number(part) for part in line.split(",")]
    if len(values) != len(_QUERY.split(",")) or values == [None, None]:
        return None
    watts, memory = values
    return PowerReading({} if watts is None else {BOARD: watts}, memory)


def _number(text: str) -> Optional[float]:
    return float(text) if re.fullmatch(r"\s*\d{1,9}(\.\d{1,6})?\s*", text) else None


def find_tool(gpu: bool, which: Callable[[str], Optional[str]] = shutil.which) -> Optional[PowerTool]:
    """The tool for this device, or None. gpu: whether engines run on a desktop GPU; without it nvidia-smi would tell of
    a GPU that does nothing."""
    if which("tegrastats"):
        return PowerTool("tegrastats", ("tegrastats", "--interval", str(INTERVAL_MS)), parse_tegrastats, TOTALS)
    if gpu and which("nvidia-smi"):
        # CUDA's first device; where CUDA_VISIBLE_DEVICES names one, that one.
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
    """This process's memory on GPUs by nvidia-smi; None where it does not tell, as from inside most containers."""
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
    """Add up what lines of ``pid, MiB``, one for each GPU that a process uses, say of `pid`; None where none does."""
    found = [
        _number(memory)
        for number, _, memory in (line.partition(",") for line in text.splitlines())
        if number.strip() == str(pid)
    ]
    told = [value for value in found if value is not None]
    return sum(told) if told else None


class PowerSampler:
    """Reads a tool's lines from entry to exit; `power` is what it found. Nothing here raises: a tool that cannot be
    started or says nothing of use leaves a `Power` without readings."""

    def __init__(self, tool: Optional[PowerTool]) -> None:
        self._tool = tool
        self._process: Optional[subprocess.Popen[str]] = None
        self._thread: Optional[threading.Thread] = None
        self._readings = 0
        self._rails: dict[str, tuple[int, float, float]] = {}  # how many, their sum, the highest
        self._memory: Optional[float] = None

    @property
    def power(self) -> Power:
        """All readings up to now; complete after the exit."""
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

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
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
        # A child of the tool's that still holds the pipe keeps the thread waiting; closing would then wait as well.
        if process.stdout is not None and self._thread is not None and not self._thread.is_alive():
            process.stdout.close()
