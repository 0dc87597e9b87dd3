"""The passes of a recipe, from checkpoint to smaller checkpoint. Finished ones are kept by what they were made from."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from t2v_calibration.captions import load_captions
from t2v_edge.errors import CheckpointError, UsageError
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import Checkpoint, load_checkpoint, save_loaded, with_stages
from t2v_export.checkpoint.weights import pack_weights, read_weights
from t2v_export.compress.distill import LOSSES, DistillOptions, distill_stage
from t2v_export.compress.grid import round_checkpoint
from t2v_export.compress.prune import prune_checkpoint
from t2v_export.compress.rebuild import rebuild_checkpoint
from t2v_export.recipe import Distill, Prune, Rebuild, Recipe, Round
from t2v_export.store import PassStore, content_key

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
    logs: Mapping[str, Sequence[Mapping[str, Any]]]


def compress(checkpoint: Checkpoint, recipe: Recipe, options: PassOptions = PassOptions()) -> Compressed:
    """Run a recipe's checkpoint passes in order. What the store holds is not made again.

    The teacher of every distill pass is `checkpoint` itself. Raises `UsageError`, `CheckpointError`, `CaptionError`,
    `CalibrationError` and `TrainingError`.
    """
    current, key = checkpoint, content_key(checkpoint=checkpoint.sha256, seed=options.seed, version=VERSION)
    logs: dict[str, Sequence[Mapping[str, Any]]] = {}
    partial = None  # the only stage, once a distill pass has left others out: later results are incomplete
    for number, one in enumerate(recipe.checkpoint_passes, 1):
        if isinstance(one, Distill):
            captions = read_captions(one.captions, one.corpus)
            setup = DistillOptions(checkpoint, current, one, captions, options.seed, options.device, options.progress)
            current, made = _distill(setup, key, options)
            logs.update({f"{number}.{stage}": log for stage, log in made.items()})
            key = content_key(before=key, options=asdict(one), captions=captions)
            if set(one.stages) - {options.only_stage} and options.only_stage:
                partial = options.only_stage
        else:
            captions = read_captions(one.captions) if isinstance(one, Prune) else ()
            key = content_key(before=key, kind=type(one).__name__, options=asdict(one), captions=captions)
            current = _kept(content_key(key=key, only=partial), current, one, options)
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


def _make(current: Checkpoint, one: Prune | Rebuild | Round, options: PassOptions) -> Checkpoint:
    if isinstance(one, Prune):
        return prune_checkpoint(current, one, options.seed)
    if isinstance(one, Round):
        return round_checkpoint(current, one)
    return rebuild_checkpoint(current, one, options.allow_code)


def _kept(key: str, current: Checkpoint, one: Prune | Rebuild | Round, options: PassOptions) -> Checkpoint:
    """The checkpoint kept under `key`, or what the pass makes, as it is read back: the same in both cases."""
    kept = options.store.load(key)
    if kept is not None:
        try:
            return _unpacked(kept, current, options.allow_code)
        except CheckpointError:
            pass  # a damaged entry is made again
    files = _packed(_make(current, one, options))
    options.store.save(key, files)
    return _unpacked(files, current, options.allow_code)


def _packed(checkpoint: Checkpoint) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        save_loaded(checkpoint, folder, torch.float32)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _unpacked(files: Mapping[str, bytes], before: Checkpoint, allow_code: bool) -> Checkpoint:
    """Read it; its folder is that of the checkpoint `before` it, where evaluator and code are."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in files.items():
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return replace(load_checkpoint(scratch, allow_code), folder=before.folder)


def _distill(
    setup: DistillOptions, before: str, options: PassOptions
) -> tuple[Checkpoint, dict[str, list[dict[str, Any]]]]:
    modules, logs = {}, {}
    for stage in setup.options.stages:
        if options.only_stage in (None, stage):
            modules[stage], logs[stage] = _distilled(setup, stage, before, options.store)
    return with_stages(setup.student, setup.student.config, modules), logs


def _distilled(
    setup: DistillOptions, stage: str, before: str, store: PassStore
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """A stage's training by its own key, which counts only the options that the stage reads."""
    others = tuple(f"{s}_" for s in STAGES if s != stage)
    unread = {"stages", *(option for s, options in READ_BY.items() if s != stage for option in options)}
    counted = {k: v for k, v in asdict(setup.options).items() if k not in unread and not k.startswith(others)}
    key = content_key(before=before, distill=stage, options=counted, captions=list(setup.captions))
    student = setup.student.modules[stage]
    kept = store.load(key)
    if kept is not None:
        try:
            return _trained(student, kept, stage)
        except (CheckpointError, RuntimeError, KeyError, ValueError):
            pass  # a damaged entry is made again
    module, log = distill_stage(setup, stage, store.workplace(key))
    files = {f"{stage}.safetensors": pack_weights(module.state_dict()), LOG: json.dumps(log).encode()}
    store.save(key, files)
    store.clear_workplace(key)
    return _trained(student, files, stage)


def _trained(
    student: torch.nn.Module, files: Mapping[str, bytes], stage: str
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """A stage's module as its training left it, rounded to float16 as a checkpoint's weights are; and the log."""
    module = copy.deepcopy(student)
    module.load_state_dict(_weights(files, stage))
    return module.eval().requires_grad_(False), json.loads(files[LOG])


def _weights(files: Mapping[str, bytes], stage: str) -> Mapping[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as scratch:
        name = f"{stage}.safetensors"
        (Path(scratch) / name).write_bytes(files[name])
        found = read_weights(Path(scratch), stage)
    assert found is not None
    return found


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
    return with_stages(replace(checkpoint, card=card), replace(checkpoint.config, name=name), {})
