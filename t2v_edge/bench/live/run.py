"""The live benchmark's run: clients in this process, and a server in its own or one that runs already.

If hostile clients are asked for, the same run is made without them first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Optional

from t2v_edge.bench.frames import describe_machine
from t2v_edge.bench.live.client import BenchClient
from t2v_edge.bench.live.hostile import KINDS, HostileClients, HostileCounts
from t2v_edge.bench.live.record import ClientRecord, cue_offset, jitter_ms, latency, total
from t2v_edge.bench.live.report import LiveReport, LiveRun, ServerSide
from t2v_edge.bench.live.script import CAPTIONS, Script
from t2v_edge.bench.live.server import (
    Sampler,
    Samples,
    ServerTarget,
    Trend,
    labelled,
    read_metrics,
    serving,
    stage_times,
)
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.device.system import System
from t2v_edge.errors import ClientError, ProtocolError, T2VError, UsageError
from t2v_edge.play.clock import exact
from t2v_edge.remote.protocol import MAX_FPS, MAX_SIDE, MIN_FPS
from t2v_edge.util.machine import versions
from t2v_edge.util.signals import stop_signals

MAX_CLIENTS = 2048
WARM_S = 2.0
"""Time before counting starts: processors reach their clocks, and streams learn how early to begin a frame."""
FIRST_S = 30.0
"""The longest wait for a client's first frame."""
ANSWER_S = 5.0
"""The longest wait after a run for the first frames of the last captions."""
SAMPLE_S = 1.0
"""Time between two readings of the server's memory and processor time."""
Advance = Callable[[str, float], object]


@dataclass(frozen=True)
class LiveBenchOptions:
    """What to measure. Raises `UsageError`.

    script: the clients' captions. clients: viewers that are measured. hostile: other clients, by kind (`KINDS`). fps,
    size, format: of the streams, None for the server's. server: the address of a running server, None to start one.
    arguments: of ``t2v-edge serve``, for a server that is started. cafile: certificates to trust, for wss. seed: of the
    first client's stream; each further one adds 1.
    """

    script: Script
    clients: int = 1
    hostile: Mapping[str, int] = field(default_factory=dict)
    fps: Optional[str] = None
    size: Optional[tuple[int, int]] = None
    format: Optional[str] = None
    server: Optional[str] = None
    arguments: tuple[str, ...] = ()
    cafile: Optional[str] = None
    token: Optional[str] = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise UsageError(f"--clients is {self.clients}, expected 1 to {MAX_CLIENTS}")
        for kind, count in self.hostile.items():
            if not 0 <= count <= MAX_CLIENTS:
                raise UsageError(f"--{kind.replace('_', '-')} is {count}, expected 0 to {MAX_CLIENTS}")
        if not 0 < self.script.seconds <= 31_536_000:
            raise UsageError(f"--seconds is {self.script.seconds:g}, expected more than 0 and at most a year")
        if not self.script.every_s > 0:
            raise UsageError(f"--every is {self.script.every_s:g}, expected more than 0 seconds")
        if self.fps is not None and not MIN_FPS <= exact(self.fps, "fps") <= MAX_FPS:
            raise UsageError(f"--fps is {self.fps}, expected {MIN_FPS} to {MAX_FPS}")
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise UsageError(f"--size is {self.size[0]}x{self.size[1]}, expected 1 to {MAX_SIDE} pixels a side")

    def to_json(self) -> dict[str, Any]:
        script = self.script
        return {
            "seconds": script.seconds,
            "every_s": None if script.is_timed else script.every_s,
            "switches": script.switches,
            "timed": script.is_timed,
            "clients": self.clients,
            **{kind: self.hostile.get(kind, 0) for kind in KINDS},
            "fps": self.fps,
            "size": None if self.size is None else list(self.size),
            "format": self.format,
            "seed": self.seed,
            "own_server": self.server is None,
            "server_arguments": list(self.arguments),
        }


def bench_live(
    bundle: Optional[Path], options: LiveBenchOptions, advance: Advance = lambda phase, share: None
) -> LiveReport:
    """Measure a live server of the bundle, or the one at `options.server`.

    advance: called with the phase and the share of it that is done. Ctrl-C and SIGTERM end the run early; the report
    then covers the time before. Raises `ServerError`, `ClientError`, `ProtocolError`, `BundleError` or `UsageError`.
    """
    sha256 = None
    if options.server is None:
        if bundle is None:
            raise UsageError("there is nothing to measure; give a bundle, or --server with the address of one")
        with Bundle.open(bundle) as opened:
            sha256 = opened.manifest_sha256
    return asyncio.run(_Bench(bundle, options, advance).measure(sha256))


class _Bench:
    """One live benchmark, on one event loop."""

    def __init__(self, bundle: Optional[Path], options: LiveBenchOptions, advance: Advance) -> None:
        self._bundle, self._options, self._advance = bundle, options, advance
        self._stop: asyncio.Future[None]

    async def measure(self, sha256: Optional[str]) -> LiveReport:
        options = self._options
        self._stop = asyncio.get_running_loop().create_future()

        def stop() -> None:
            if not self._stop.done():
                self._stop.set_result(None)

        with stop_signals(stop):
            async with self._server() as target:
                alone = None
                if any(options.hostile.values()):
                    alone, _ = await self._run(target, "without adversaries")
                run, viewer = await self._run(target, "live", options.hostile)
                welcome = viewer.welcome
        return LiveReport(
            bundle=welcome.bundle,
            manifest_sha256=sha256,
            options=options.to_json(),
            size=welcome.settings.size or (0, 0),
            format=welcome.settings.format or "",
            announced=target.announced,
            run=run,
            alone=alone,
            interrupted=self._stop.done(),
            machine=describe_machine(System.read()),
            versions=versions("onnxruntime", "openvino", "websockets", "opencv-python-headless"),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
        )

    @contextlib.asynccontextmanager
    async def _server(self) -> AsyncIterator[ServerTarget]:
        """The server at `options.server`, or one that is started and stopped."""
        options = self._options
        tls = None
        if options.server is not None:
            if options.server.startswith("wss:"):
                tls = ssl.create_default_context(cafile=options.cafile)
            yield ServerTarget(options.server, options.token, tls)
            return
        assert self._bundle is not None
        self._advance("starting the server", 0.0)
        everyone = options.clients + sum(options.hostile.values())
        arguments = ("--max-clients", str(max(8, everyone)), *options.arguments)
        async with serving(self._bundle, arguments, options.token) as target:
            self._advance("starting the server", 1.0)
            yield target

    async def _run(
        self, target: ServerTarget, phase: str, clients: Mapping[str, int] = MappingProxyType({})
    ) -> tuple[LiveRun, BenchClient]:
        """Connect, warm up, play the script and sum up. Hostile clients join after the viewers, and leave before."""
        async with contextlib.AsyncExitStack() as stack:
            viewers = [
                await stack.enter_async_context(await self._connect(target, n)) for n in range(self._options.clients)
            ]
            await asyncio.gather(
                *(viewer.start(CAPTIONS[-1 - n % len(CAPTIONS)], FIRST_S) for n, viewer in enumerate(viewers))
            )
            hostile = None
            if any(clients.values()):
                hostile = await stack.enter_async_context(
                    HostileClients(target.url, target.token, self._options.cafile, clients)
                )
            loop = asyncio.get_running_loop()
            await self._progress(loop.time(), WARM_S, f"{phase}: warming up")
            sampler = await stack.enter_async_context(Sampler(target, SAMPLE_S))
            gc.collect()  # now, so that it is less likely to happen between frames
            start_s, cpu = loop.time(), time.process_time()
            for viewer in viewers:
                viewer.record.reset()
            broken = await self._play(viewers, start_s, phase)
            seconds, cpu = loop.time() - start_s, time.process_time() - cpu
            trend = sampler.trend
            await asyncio.gather(*(viewer.wait_for_answers(ANSWER_S) for viewer in viewers))
            server = await _server_side(target, viewers, trend)
            if hostile is not None:
                await hostile.stop()
            return _sum_up(
                viewers,
                seconds,
                cpu / seconds,
                server,
                None if hostile is None else hostile.counts,
                broken,
                self._options.script.is_timed,
            ), viewers[0]

    async def _connect(self, target: ServerTarget, number: int) -> BenchClient:
        options = self._options
        return await BenchClient.connect(
            target.url,
            token=target.token,
            fps=options.fps,
            size=options.size,
            seed=options.seed + number,
            format=options.format,
            tls=target.tls,
        )

    async def _play(self, viewers: Sequence[BenchClient], start_s: float, phase: str) -> Optional[str]:
        """Play the script until its end or a signal. Returns why, if a client lost its stream before."""
        script, clients = self._options.script, len(viewers)
        end_s = start_s + script.seconds

        async def view(number: int, viewer: BenchClient) -> None:
            fps = viewer.welcome.settings.fps or Fraction(30)
            await viewer.play(script.lines(number, clients, fps), start_s, self._stop)
            await viewer.wait_until(end_s, self._stop)

        progress = asyncio.ensure_future(self._progress(start_s, script.seconds, phase))
        playing = [asyncio.ensure_future(view(number, viewer)) for number, viewer in enumerate(viewers)]
        done, _ = await asyncio.wait(playing, return_when=asyncio.FIRST_EXCEPTION)
        for task in (progress, *playing):
            task.cancel()
        await asyncio.gather(progress, *playing, return_exceptions=True)
        errors = [error for task in done if (error := task.exception()) is not None]
        for error in errors:
            if not isinstance(error, T2VError):
                raise error
        return f"a client lost its stream: {errors[0]}" if errors else None

    async def _progress(self, start_s: float, seconds: float, phase: str) -> None:
        """Report progress until `seconds` have passed, or a signal ends the run."""
        loop = asyncio.get_running_loop()
        while (passed := loop.time() - start_s) < seconds and not self._stop.done():
            self._advance(phase, passed / seconds)
            await asyncio.wait({self._stop}, timeout=min(0.5, seconds - passed))
        self._advance(phase, 1.0)


async def _server_side(target: ServerTarget, viewers: Sequence[BenchClient], trend: Trend) -> ServerSide:
    """The server's own figures. A figure that it no longer gives is left out."""
    medians, tails = [], []
    for viewer in viewers:
        with contextlib.suppress(ClientError, ProtocolError):
            stats = await viewer.stats()
            medians.append(stats.latency_ms)
            tails.append(stats.latency_p95_ms)
    samples: Samples = {}
    with contextlib.suppress(ClientError):
        samples = await read_metrics(target)
    qualities, refused = (
        {key: int(value) for key, value in labelled(samples, name, label).items()}
        for name, label in (("t2v_quality_clients", "divisor"), ("t2v_refused_total", "code"))
    )
    return ServerSide(
        max((m for m in medians if m is not None), default=None),
        max((t for t in tails if t is not None), default=None),
        stage_times(samples),
        qualities,
        refused,
        trend,
    )


def _sum_up(
    viewers: Sequence[BenchClient],
    seconds: float,
    client_cpu: float,
    server: ServerSide,
    hostile: Optional[HostileCounts],
    broken: Optional[str],
    timed: bool,
) -> LiveRun:
    records: list[ClientRecord] = [viewer.record for viewer in viewers]
    received = [record.received() for record in records]
    drifts = [drift for record in records if (drift := record.drift_frames()) is not None]
    return LiveRun(
        seconds=seconds,
        fps=1 / records[0].period_s,
        rates=[one.frames / seconds for one in received],
        received=total(received),
        latency=latency(records),
        cue=cue_offset(records) if timed else None,
        jitter_ms=jitter_ms(records),
        drift_frames=max(drifts, key=abs, default=None),
        client_cpu=client_cpu,
        server=server,
        hostile=hostile,
        broken=broken,
    )
