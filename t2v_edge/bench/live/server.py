"""The server under measurement: started in its own process, and observed by its /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

import numpy as np

from t2v_edge.errors import ClientError, ServerError
from t2v_edge.server.access import TOKEN_VARIABLE
from t2v_edge.util.timing import Latency

START_S = 600.0
"""The longest wait for a server to start: it may time or build engines on first use."""
STOP_S = 15.0
READ_S = 5.0
SETTLED = 0.1
"""The share of a run, at its start, whose memory is left out: allocators still grow."""
LEAST_S = 60.0
"""The shortest run that gives a slope of memory: a shorter one says nothing about an hour."""

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class ServerTarget:
    """A server's address. announced: the line it printed when it started, such as its engines; empty if not known."""

    url: str
    token: Optional[str] = None
    tls: Optional[ssl.SSLContext] = None
    announced: Mapping[str, Any] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def serving(bundle: Path, arguments: Sequence[str], token: Optional[str]) -> AsyncIterator[ServerTarget]:
    """Run ``t2v-edge serve`` of this bundle on a free port, in its own process, until the block is left.

    Raises `ServerError` with the process's messages if it does not start.
    """
    environment = os.environ if token is None else {**os.environ, TOKEN_VARIABLE: token}
    with tempfile.TemporaryFile() as log:
        # A new session: Ctrl-C then reaches only this process, which stops the server itself.
        command = [sys.executable, "-m", "t2v_edge", "serve", str(bundle), "--port", "0", "--json", *arguments]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
        try:
            assert process.stdout is not None
            try:
                announced = json.loads(await asyncio.wait_for(process.stdout.readline(), START_S))
                target = ServerTarget(announced["url"], token, None, announced)
            except (ValueError, KeyError, asyncio.TimeoutError) as error:
                log.seek(0)
                words = log.read()[-2000:].decode("utf-8", "replace").strip() or "without a message"
                raise ServerError(f"the server did not start ({words}); try t2v-edge serve {bundle}") from error
            yield target
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()


async def read_metrics(target: ServerTarget) -> Samples:
    """The server's metrics now. Raises `ClientError`."""
    return await asyncio.get_running_loop().run_in_executor(None, _read_metrics, target)


def _read_metrics(target: ServerTarget) -> Samples:
    parts = urlsplit(target.url)
    host = parts.hostname or ""
    # No proxy, even if the environment names one: it would be measured too.
    connection = (
        http.client.HTTPSConnection(host, parts.port, timeout=READ_S, context=target.tls)
        if parts.scheme == "wss"
        else http.client.HTTPConnection(host, parts.port, timeout=READ_S)
    )
    headers = {} if target.token is None else {"Authorization": f"Bearer {target.token}"}
    try:
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        text = answer.read(1 << 20).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(f"{target.url} gives no metrics ({error}); look at the server's log") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise ClientError(f"{target.url} answers {answer.status} to a request for its metrics; give its token")
    return parse_metrics(text)


def parse_metrics(text: str) -> Samples:
    """Read Prometheus' text format: (name, labels) -> value. Other lines are skipped."""
    found: Samples = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue
        with contextlib.suppress(ValueError):
            found[match[1], tuple(_LABEL.findall(match[2] or ""))] = float(match[3])
    return found


def labelled(samples: Samples, name: str, label: str) -> dict[str, float]:
    """The values of a metric by one label, summed over its other labels."""
    found: dict[str, float] = {}
    for (key, labels), value in samples.items():
        if key == name and label in dict(labels):
            of = dict(labels)[label]
            found[of] = found.get(of, 0.0) + value
    return found


def stage_times(samples: Samples) -> dict[str, Latency]:
    """Each stage's latency, as the server measured it. Percentiles are of its last thousand runs."""
    stages = {}
    for stage, count in labelled(samples, "t2v_latency_ms_count", "stage").items():
        keys = [("t2v_latency_ms", (("stage", stage), ("quantile", at))) for at in ("0.5", "0.95", "0.99")]
        stages[stage] = Latency(int(count), *(samples.get(key) for key in keys))
    return stages


@dataclass(frozen=True)
class Trend:
    """The server's memory and processor time over a run.

    start_bytes, end_bytes, peak_bytes: resident memory after it settled, at the end, and at its highest.
    slope_mib_per_hour: by least squares, None for runs shorter than `LEAST_S`. cpu_share: processor time over wall
    time, 1 for one busy core.
    """

    samples: int = 0
    start_bytes: int = 0
    end_bytes: int = 0
    peak_bytes: int = 0
    slope_mib_per_hour: Optional[float] = None
    cpu_share: Optional[float] = None

    @classmethod
    def of(cls, times_s: Sequence[float], resident: Sequence[float], cpu_s: Sequence[float]) -> Trend:
        """The trend of samples in order of time."""
        if not times_s:
            return cls()
        times, memory = np.asarray(times_s, np.float64), np.asarray(resident, np.float64)
        kept = times >= times[0] + SETTLED * (times[-1] - times[0])
        late, held = times[kept], memory[kept]
        slope = share = None
        if times[-1] > times[0]:
            share = (cpu_s[-1] - cpu_s[0]) / (times[-1] - times[0])
        if len(late) > 2 and times[-1] - times[0] >= LEAST_S:
            centred = late - late.mean()
            slope = float((centred * held).sum() / (centred**2).sum()) * 3600 / (1 << 20)
        return cls(
            len(times), int(held[0]), int(held[-1]), int(memory.max()), slope, None if share is None else float(share)
        )

    def to_json(self) -> dict[str, Any]:
        mib = 1 << 20
        return {
            "samples": self.samples,
            "start_mib": self.start_bytes / mib,
            "end_mib": self.end_bytes / mib,
            "peak_mib": self.peak_bytes / mib,
            "slope_mib_per_hour": self.slope_mib_per_hour,
            "cpu_share": self.cpu_share,
        }


class Sampler:
    """Reads the server's memory and processor time every `every_s` seconds, as a context manager.

    Keeps at most `MOST` samples. Then every second one is dropped, and it reads half as often.
    """

    MOST = 4096

    def __init__(self, target: ServerTarget, every_s: float = 1.0) -> None:
        self._target, self._every_s = target, every_s
        self._times: list[float] = []
        self._resident: list[float] = []
        self._cpu: list[float] = []
        self._task: Optional[asyncio.Task[None]] = None

    @property
    def trend(self) -> Trend:
        return Trend.of(self._times, self._resident, self._cpu)

    def add(self, at_s: float, samples: Samples) -> None:
        memory = samples.get(("process_resident_memory_bytes", ()))
        cpu = samples.get(("process_cpu_seconds_total", ()))
        if memory is None or cpu is None:
            return
        for kept, value in zip((self._times, self._resident, self._cpu), (at_s, memory, cpu)):
            kept.append(value)
        if len(self._times) >= self.MOST:
            for kept in (self._times, self._resident, self._cpu):
                del kept[1::2]
            self._every_s *= 2

    async def __aenter__(self) -> Sampler:
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(ClientError):  # if the server is gone, its clients raise
                samples = await read_metrics(self._target)
                self.add(loop.time(), samples)
            await asyncio.sleep(self._every_s)
