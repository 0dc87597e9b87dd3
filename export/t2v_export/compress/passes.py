"""The passes of a recipe, from checkpoint to smaller checkpoint. Finished ones are kept by what they were made from."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from t2v_calibration.captions import load_captions
from t2v_edge.errors import CheckpointError, UsageError
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import Checkpoint, load_checkpoint, save_loaded, with_stages
from t2v_export.compress.distill import LOSSES, DistillOptions, distill_stage
from t2v_export.compress.grid import round_checkpoint
from t2v_export.compress.prune import prune_checkpoint
from t2v_export.compress.rebuild import rebuild_checkpoint
from t2v_export.recipe import Distill, Prune, Rebuild, Recipe, Round
from t2v_export.store import Files, PassStore, content_key
from t2v_export.weights.tensors import pack_weights, read_weights

T = TypeVar("T")
Log = Sequence[Mapping[str, Any]]
VERSION = 2
"""Raised whenever a pass makes something else of the same input: results kept by an older toolchain are not found."""

LOG = "log.json"

READ_BY = {"text": ("near", "corpus"), "render": (*LOSSES, "quantization_aware")}
"""Options of a distill pass without a stage's name that one stage alone reads."""


@dataclass(frozen=True)
class PassOptions:
    """How passes run: `seed` of everything random, `store` of finished work, `device` to train on.

    `only_stage`: train this stage alone and keep it. So several processes can train one stage each.
    """

    seed: int = 0
    allow_code: bool = False
    store: PassStore = PassStore(None)
    device: str = "cpu"
    progress: bool = False
    only_stage: str | None = None


@dataclass(frozen=True)
class Compressed:
    """A smaller checkpoint, and the logs of its trainings: by "PASS.STAGE" a list of measurements."""

    checkpoint: Checkpoint
    logs: Mapping[str, Log]


def compress(checkpoint: Checkpoint, recipe: Recipe, options: PassOptions = PassOptions()) -> Compressed:
    """Run a recipe's checkpoint passes in order. What the store holds is not made again.

    The teacher of every distill pass is `checkpoint` itself. Raises `UsageError`, `CheckpointError`, `CaptionError`,
    `CalibrationError` and `TrainingError`.
    """
    current, key = checkpoint, content_key(checkpoint=checkpoint.sha256, seed=options.seed, version=VERSION)
    logs: dict[str, Log] = {}
    only = None  # the only stage, once a distill pass has left others out: later results are incomplete
    for number, one in enumerate(recipe.checkpoint_passes, 1):
        if isinstance(one, Distill):
            captions = read_captions(one.captions, one.corpus)
            setup = DistillOptions(checkpoint, current, one, captions, options.seed, options.device, options.progress)
            modules = {}
            for stage in one.stages:
                if options.only_stage in (None, stage):
                    modules[stage], logs[f"{number}.{stage}"] = _distilled(setup, stage, key, options.store)
            current = with_stages(current, modules)
            key = content_key(before=key, options=asdict(one), captions=captions)
            if set(one.stages) - {options.only_stage} and options.only_stage:
                only = options.only_stage
        else:
            captions = read_captions(one.captions) if isinstance(one, Prune) else ()
            key = content_key(before=key, kind=type(one).__name__, options=asdict(one), captions=captions)
            read = partial(_unpacked, before=current, allow_code=options.allow_code)
            made = partial(_made, current, one, options)
            current = _kept(options.store, content_key(key=key, only=only), read, made)
    return Compressed(_named(current, recipe, checkpoint), logs)


def training_device(name: str) -> str:
    """`name`, or for "auto" a GPU if there is one. Raises `UsageError` for a device that is missing."""
    device = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of device
        raise UsageError(f"device {device!r} is not here; train on cpu, or on cuda with a CUDA build") from error
    return device


def read_captions(names: Sequence[str], corpus: str = "") -> tuple[str, ...]:
    """The captions of some sets or files, and those of a `corpus`, each once. Raises `CaptionError`."""
    found = [caption for name in (*names, *([corpus] if corpus else [])) for caption in load_captions(name)]
    return tuple(dict.fromkeys(found))


def _kept(store: PassStore, key: str, read: Callable[[Files], T], make: Callable[[], Files]) -> T:
    """What is read from the files kept under `key`, or from those made now: the same in both cases."""
    kept = store.load(key)
    if kept is not None:
        try:
            return read(kept)
        except (CheckpointError, RuntimeError, KeyError, ValueError):
            pass  # a damaged entry is made again
    files = make()
    store.save(key, files)
    return read(files)


def _made(current: Checkpoint, one: Prune | Rebuild | Round, options: PassOptions) -> Files:
    """The files of the checkpoint that a pass makes."""
    if isinstance(one, Prune):
        checkpoint = prune_checkpoint(current, one, options.seed)
    elif isinstance(one, Round):
        checkpoint = round_checkpoint(current, one)
    else:
        checkpoint = rebuild_checkpoint(current, one, options.allow_code)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        save_loaded(checkpoint, folder, torch.float32)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _unpacked(files: Files, before: Checkpoint, allow_code: bool) -> Checkpoint:
    """Read a checkpoint; its folder is that of the checkpoint `before` it, where evaluator and code are."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in files.items():
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return replace(load_checkpoint(scratch, allow_code), folder=before.folder)


def _distilled(setup: DistillOptions, stage: str, before: str, store: PassStore) -> tuple[torch.nn.Module, Log]:
    """A stage's training by its own key, which counts only the options that the stage reads."""
    others = tuple(f"{s}_" for s in STAGES if s != stage)
    unread = {"stages", *(option for s, options in READ_BY.items() if s != stage for option in options)}
    counted = {k: v for k, v in asdict(setup.options).items() if k not in unread and not k.startswith(others)}
    key = content_key(before=before, distill=stage, options=counted, captions=list(setup.captions))
    weights = f"{stage}.safetensors"

    def train() -> Files:
        module, log = distill_stage(setup, stage, store.workplace(key))
        return {weights: pack_weights(module.state_dict()), LOG: json.dumps(log).encode()}

    def read(files: Files) -> tuple[torch.nn.Module, Log]:
        """The module as its training left it, rounded to float16 as a checkpoint's weights are; and the log."""
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / weights).write_bytes(files[weights])
            found = read_weights(Path(scratch), stage)
        module = copy.deepcopy(setup.student.modules[stage])
        module.load_state_dict(found or {})
        return module.eval().requires_grad_(False), json.loads(files[LOG])

    trained = _kept(store, key, read, train)
    store.clear_workplace(key)
    return trained


def _named(checkpoint: Checkpoint, recipe: Recipe, teacher: Checkpoint) -> Checkpoint:
    """Called by the recipe's name where it is the shipped reference's student, else NAME-RECIPE; with a card."""
    of = teacher.config.name
    name = (recipe.name if of == "reference" else f"{of}-{recipe.name}")[:64]
    passes = ", ".join(type(one).__name__.lower() for one in recipe.checkpoint_passes)
    card = f"""# Model card: {name}

Made of the checkpoint `{of}` by the recipe `{recipe.name}` ({passes}), without any data but captions. Nothing is
measured yet: `t2v-edge compare BUNDLE --against CHECKPOINT` does. What follows is the card of `{of}`, whose terms hold
here too and whose figures are its own.

{teacher.card}"""
    return with_stages(replace(checkpoint, card=card, config=replace(checkpoint.config, name=name)), {})
