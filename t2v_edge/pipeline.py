"""A bundle loaded into engines, ready to play any number of streams."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Optional, Union, cast
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.manifest import Manifest
from t2v_edge.bundle.tokenizer import CaptionTokenizer, normalise
from t2v_edge.engine.choice import open_stage
from t2v_edge.engine.registry import AUTO, BUILT, Engine, EngineOptions, check_engine, is_installed
from t2v_edge.engine.tensorrt.cache import any_built
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.live.options import LATEST, LiveOptions
from t2v_edge.live.stream import LiveStream
from t2v_edge.play.player import HostPlayer, Player
from t2v_edge.play.stream import FrameStream, StreamOptions
from t2v_edge.spec import STAGES, Arrays

CACHED_CONDITIONS = 64
_LOG = logging.getLogger(__name__)
DECIDED = 2 / 3
"""Of a group of probabilities, what one must exceed to be taken for certain: to be twice as likely as all others."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What the text stage makes: `vector` float32 (1, C), read-only; the normalised caption; whether it was cut."""

    vector: npt.NDArray[np.float32]
    caption: str
    truncated: bool


class Pipeline:
    """Three engines and a tokenizer. Immutable; share it among threads and streams, each stream has its own state.

    `manifest`: the bundle's. `variants`: stage -> the variant loaded. `engines`: stage -> the engine's name.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: CaptionTokenizer,
        engines: Mapping[str, Engine],
        variants: Mapping[str, str],
    ) -> None:
        self.manifest = manifest
        self.variants = dict(variants)
        self.engines = {stage: engine.name for stage, engine in engines.items()}
        self._tokenizer = tokenizer
        self._loaded = dict(engines)
        self._conditions: OrderedDict[str, Condition] = OrderedDict()
        self._lock = threading.Lock()
        self._players: WeakSet[Player] = WeakSet()
        self._live: WeakSet[LiveStream] = WeakSet()
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Union[str, os.PathLike[str]],
        engine: str = AUTO,
        variant: Optional[str] = None,
        threads: Optional[int] = None,
        batch: int = 1,
        callers: int = 1,
        ahead: bool = False,
    ) -> Pipeline:
        """Verify the bundle at `path` and load it.

        engine: one for all stages, or ``auto``: each stage gets the engine that runs it fastest here, measured on first
        use, for about a second in all, and remembered (see `engine.choice`); where `t2v-edge build` has left TensorRT
        engines of this bundle, those. ``tensorrt`` and ``tensorrt-rtx`` build what is not built yet, which takes a
        minute or more. The same engines give the same frames; those of different engines differ by rounding. variant:
        one variant for every stage that has it (the others keep the manifest's default), or None for the manifest's
        default, or for TensorRT for what measured fastest. threads: CPU threads an operator may use, None for the
        engine's choice. batch: frames that the renderer makes at once, on TensorRT alone. callers: streams that will
        play at the same time, for which an engine may make room. ahead: whether its streams are made ahead, so
        that an engine may give each frame a core. Raises `BundleError`, `EngineError` or `UsageError`.
        """
        options = EngineOptions(threads, callers, ahead)
        check_engine(engine)
        with Bundle.open(path) as bundle, ExitStack() as opened:
            manifest = bundle.manifest
            variants = choose_variants(manifest, variant)
            tokenizer = CaptionTokenizer(bundle.tokenizer_json, manifest.tokenizer.tokens, manifest.tokenizer.pad_id)
            built = _open_built(bundle, engine, variant, batch)
            engines: dict[str, Engine] = {}
            if built is not None:
                engines, variants = built
                for loaded in engines.values():
                    opened.enter_context(loaded)
            draws = Draws(manifest.stages["motion"], manifest.stages["render"], seed=0)
            drawn = {"text": {}, "motion": {**draws.motion, **draws.step(), **draws.states}, "render": draws.render}
            made: dict[str, npt.NDArray[Any]] = {}
            for stage in STAGES:
                spec = manifest.stages[stage]
                known = {**made, **drawn[stage]}
                feeds = {t.name: known.get(t.name, np.ones(t.shape, t.dtype)) for t in spec.inputs}
                if built is None:
                    graph = bundle.graph(variants[stage], stage)
                    engines[stage] = opened.enter_context(open_stage(engine, graph, spec, options, feeds))
                # An engine's first run allocates; it is paid here and not by the first frame.
                made.update(engines[stage].run(feeds))
            opened.pop_all()
            return cls(manifest, tokenizer, engines, variants)

    def encode(self, caption: str) -> Condition:
        """The condition of a caption; an unchanged caption is not encoded again. Raises `CaptionError`."""
        key = normalise(caption)
        with self._lock:
            known = self._conditions.get(key)
            if known is not None:
                self._conditions.move_to_end(key)
                return known
        tokens = self._tokenizer(caption)
        result = self.run("text", {"input_ids": tokens.ids, "attention_mask": tokens.mask})
        vector = settle_condition(result["condition"], self.manifest.condition_groups)
        vector.setflags(write=False)
        condition = Condition(vector, tokens.text, tokens.truncated)
        with self._lock:
            self._conditions[key] = condition
            while len(self._conditions) > CACHED_CONDITIONS:
                self._conditions.popitem(last=False)
        return condition

    def is_encoded(self, caption: str) -> bool:
        """Whether `encode` would answer from memory."""
        with self._lock:
            return normalise(caption) in self._conditions

    def is_truncated(self, caption: str) -> bool:
        """Whether the caption has more tokens than the text stage takes, so that its end is cut."""
        return self._tokenizer(caption).truncated

    def run(self, stage: str, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one stage once; the arrays returned belong to the caller. Raises `EngineError`."""
        if self._closed:
            raise EngineError("the pipeline is closed; open it again")
        return self._loaded[stage].run(feeds)

    def stream(
        self,
        caption: str,
        *,
        then: Iterable[tuple[float, str]] = (),
        fps: Union[int, float, Fraction, str, None] = None,
        seconds: Union[int, float, Fraction, None] = None,
        seed: int = 0,
        size: Optional[tuple[int, int]] = None,
        smoothing: float = 0.0,
        blend_steps: Optional[int] = None,
        ahead: bool = False,
    ) -> FrameStream:
        """A stream of frames of `caption`; the parameters are those of `StreamOptions`, `then` its later captions."""
        captions = ((0.0, caption), *((at, text) for at, text in then))
        options = StreamOptions(captions, fps, seconds, seed, size, smoothing, blend_steps, ahead)
        return FrameStream(self, options)

    def live(
        self,
        caption: Optional[str] = None,
        *,
        fps: Union[int, float, Fraction, str, None] = None,
        size: Optional[tuple[int, int]] = None,
        seed: int = 0,
        blend_steps: Optional[int] = None,
        smoothing: float = 0.0,
        queue: int = 2,
        policy: str = LATEST,
        ahead: int = 0,
        adaptive: bool = True,
        idle_after_s: Optional[float] = None,
    ) -> LiveStream:
        """A stream in real time, of `caption` if there is one yet; the parameters are those of `LiveOptions`.

            with pipeline.live("a person is waving", fps=30) as live:
                for frame in live:
                    show(frame.pixels)
                    if heard := listen():
                        live.set_caption(heard)

        Raises `CaptionError`, `UsageError` or `EngineError`.
        """
        live = LiveStream(
            self,
            LiveOptions(
                fps=fps,
                size=size,
                seed=seed,
                blend_steps=blend_steps,
                smoothing=smoothing,
                queue=queue,
                policy=policy,
                ahead=ahead,
                adaptive=adaptive,
                idle_after_s=idle_after_s,
            ),
        )
        if caption is not None:
            try:
                live.set_caption(caption)
            except BaseException:
                live.close()
                raise
        return live

    def adopt(self, live: LiveStream) -> None:
        """Close a live stream with the pipeline at the latest."""
        self._live.add(live)

    def player(self, draws: Draws, smoothing: float, ahead: bool = False) -> Player:
        """What one stream runs on: the GPU where motion and render share a queue there, else the host, which makes
        frames beside each other if they are made `ahead`. Closed with the pipeline at the latest. Raises
        `EngineError`."""
        if self._closed:
            raise EngineError("the pipeline is closed; open it again")
        motion, render = self._loaded["motion"], self._loaded["render"]
        queue = getattr(motion, "queue", None)
        player: Player
        if queue is not None and queue is getattr(render, "queue", None):
            from t2v_edge.play.gpu_player import ResidentPlayer

            player = ResidentPlayer(cast(Any, motion), cast(Any, render), draws, smoothing)
        else:
            beside = getattr(render, "beside", 1) if ahead else 1
            player = HostPlayer(self.run, self.manifest.stages["motion"].states, draws, smoothing, beside)
        self._players.add(player)
        return player

    def close(self) -> None:
        """Free the engines; live streams of this pipeline are closed, other ones end with `EngineError`."""
        for live in list(self._live):
            live.close()
        self._closed = True
        for player in list(self._players):
            player.close()
        for engine in self._loaded.values():
            engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _open_built(
    bundle: Bundle, engine: str, variant: Optional[str], batch: int
) -> Optional[tuple[dict[str, Engine], dict[str, str]]]:
    """Engines that are built for this machine, and their variants; None where other engines are to be taken."""
    if engine not in (*BUILT, AUTO):
        if batch != 1:
            raise UsageError(f"engine {engine} makes one frame at once; leave batch at 1, or take --engine tensorrt")
        return None
    for name in BUILT if engine == AUTO else (engine,):
        if not is_installed(name):
            continue
        if engine == AUTO and not any_built():
            continue
        try:
            from t2v_edge.engine.tensorrt.api import BuildSettings
            from t2v_edge.engine.tensorrt.build import Builder, BuildOptions

            chosen = None if variant is None else (variant,)
            builder = Builder(bundle, BuildOptions(name, chosen, BuildSettings(batch)))
            if engine != AUTO or builder.plan() is not None:
                return builder.open()
        except (EngineError, ImportError) as error:
            if engine != AUTO:
                raise (
                    error
                    if isinstance(error, EngineError)
                    else EngineError(f"engine {engine} needs cuda-python ({error}); pip install 't2v-edge[tensorrt]'")
                ) from error
            _LOG.warning("engines that were built are left alone: %s", error)
    return None


def settle_condition(condition: npt.NDArray[np.float32], groups: Sequence[int]) -> npt.NDArray[np.float32]:
    """A condition (1, C) in which a group of probabilities whose largest is over `DECIDED` has a 1 there and else 0.

    What a caption says beyond doubt is then the same whatever precision, engine and machine has read it, and the same
    seed moves the same way: a recurrent state never forgets a difference, however small. A new array, or the given one
    where there are no groups.
    """
    if not groups:
        return condition
    settled: npt.NDArray[np.float32] = condition.copy()
    start = 0
    for size in groups:
        group = settled[0, start : start + size]
        largest = int(group.argmax())
        if group[largest] > DECIDED:
            group[:] = 0.0
            group[largest] = 1.0
        start += size
    return settled


def choose_variants(manifest: Manifest, variant: Optional[str]) -> dict[str, str]:
    """Stage -> variant: `variant` where a stage has it, else the default; raises `UsageError` for an unknown one."""
    if variant is None:
        return dict(manifest.default)
    if variant not in manifest.variants:
        raise UsageError(f"variant {variant!r} is not in the bundle; choose one of: {', '.join(manifest.variants)}")
    graphs = manifest.variants[variant]
    return {stage: variant if stage in graphs else manifest.default[stage] for stage in STAGES}
