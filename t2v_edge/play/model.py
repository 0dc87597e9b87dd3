"""A bundle in memory, on which streams stand: engines, tokenizer and manifest."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Optional, Protocol, Union
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.manifest import Manifest
from t2v_edge.bundle.tokenizer import CaptionTokenizer, TokenizedCaption, normalise
from t2v_edge.engine.base import Engine, EngineOptions, Player
from t2v_edge.engine.choice import open_stage
from t2v_edge.engine.registry import AUTO, BUILT, check_engine, is_installed
from t2v_edge.engine.tensorrt.cache import any_built
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.play.condition import Condition, settle_condition
from t2v_edge.play.player import HostPlayer
from t2v_edge.spec import STAGES, Arrays

CACHED_CONDITIONS = 64
CLOSED = "the pipeline is closed; open it again"
_LOG = logging.getLogger(__name__)


class Closable(Protocol):
    """What a model closes before itself."""

    def close(self) -> None: ...


class Model:
    """The engines of a bundle's three stages, its tokenizer and its manifest.

    Threads and streams share it: each stream has its own state. It owns the engines, the players that it makes, and
    the streams that it adopts. `manifest`: the bundle's. `variants`: stage -> the variant loaded. `engines`: stage ->
    the engine's name.
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
        self._streams: WeakSet[Closable] = WeakSet()
        self._players: WeakSet[Player] = WeakSet()
        self._closed = False

    @classmethod
    def open(
        cls, path: Union[str, os.PathLike[str]], engine: str, variant: Optional[str], batch: int, options: EngineOptions
    ) -> Model:
        """Verify the bundle at `path`, load it and run each stage once. `Pipeline.open` describes the parameters."""
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
                # An engine's first run allocates. It is paid here and not by the first frame.
                made.update(engines[stage].run(feeds))
            opened.pop_all()
            return cls(manifest, tokenizer, engines, variants)

    def read(self, caption: str) -> TokenizedCaption:
        """Normalise and tokenise a caption, as `encode` takes it. Raises `CaptionError`."""
        text = normalise(caption)
        with self._lock:
            known = self._conditions.get(text)
        return self._tokenizer.tokenise(text) if known is None else known.source

    def encode(self, caption: TokenizedCaption) -> Condition:
        """The condition of a caption. The newest 64 are remembered. Raises `EngineError`."""
        with self._lock:
            known = self._conditions.get(caption.text)
            if known is not None:
                self._conditions.move_to_end(caption.text)
                return known
        result = self.run("text", {"input_ids": caption.ids, "attention_mask": caption.mask})
        vector = settle_condition(result["condition"], self.manifest.condition_groups)
        vector.setflags(write=False)
        condition = Condition(vector, caption, fresh=True)
        with self._lock:
            self._conditions[caption.text] = replace(condition, fresh=False)
            while len(self._conditions) > CACHED_CONDITIONS:
                self._conditions.popitem(last=False)
        return condition

    def run(self, stage: str, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one stage once; the arrays returned belong to the caller. Raises `EngineError`."""
        if self._closed:
            raise EngineError(CLOSED)
        return self._loaded[stage].run(feeds)

    def player(self, draws: Draws, smoothing: float, ahead: bool = False) -> Player:
        """A player of one stream: the engines' own, as on a GPU, or one on the host.

        draws: the stream's random numbers. smoothing: of motion, 0 to below 1. ahead: several groups of frames will be
        on their way, so the host may render them in parallel. Raises `EngineError`.
        """
        if self._closed:
            raise EngineError(CLOSED)
        motion, render = self._loaded["motion"], self._loaded["render"]
        player = render.open_player(motion, draws, smoothing)
        if player is None:
            states = self.manifest.stages["motion"].states
            player = HostPlayer(self.run, states, draws, smoothing, render.parallel if ahead else 1)
        self._players.add(player)
        return player

    def adopt(self, stream: Closable) -> None:
        """Close a stream before the engines, if it is not closed by then."""
        self._streams.add(stream)

    def close(self) -> None:
        """Close the streams that it adopted, then all players and engines. Other streams end with `EngineError`."""
        for stream in list(self._streams):
            stream.close()
        self._closed = True
        for player in list(self._players):
            player.close()
        for engine in self._loaded.values():
            engine.close()


def _open_built(
    bundle: Bundle, engine: str, variant: Optional[str], batch: int
) -> Optional[tuple[dict[str, Engine], dict[str, str]]]:
    """Engines that are built for this machine, and their variants; None to load the bundle's graphs instead."""
    if engine not in (*BUILT, AUTO):
        if batch != 1:
            raise UsageError(f"engine {engine} makes one frame at once; leave batch at 1, or take --engine tensorrt")
        return None
    for name in BUILT if engine == AUTO else (engine,):
        if not is_installed(name) or (engine == AUTO and not any_built()):
            continue
        try:
            from t2v_edge.engine.tensorrt.api import BuildSettings
            from t2v_edge.engine.tensorrt.build import Builder, BuildOptions

            chosen = None if variant is None else (variant,)
            builder = Builder(bundle, BuildOptions(name, chosen, BuildSettings(batch)))
            if engine != AUTO or builder.plan() is not None:
                return builder.open()
        except (EngineError, ImportError) as error:
            if engine == AUTO:
                _LOG.warning("engines that were built are not used: %s", error)
            elif isinstance(error, EngineError):
                raise
            else:
                message = f"engine {engine} needs cuda-python ({error}); pip install 't2v-edge[tensorrt]'"
                raise EngineError(message) from error
    return None


def choose_variants(manifest: Manifest, variant: Optional[str]) -> dict[str, str]:
    """Stage -> `variant` if the stage has it, else its default. Raises `UsageError` for an unknown variant."""
    if variant is None:
        return dict(manifest.default)
    if variant not in manifest.variants:
        raise UsageError(f"variant {variant!r} is not in the bundle; choose one of: {', '.join(manifest.variants)}")
    graphs = manifest.variants[variant]
    return {stage: variant if stage in graphs else manifest.default[stage] for stage in STAGES}
