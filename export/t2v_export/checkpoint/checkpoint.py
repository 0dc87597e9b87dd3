"""A checkpoint: three trained stages and their config. The format stands in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
import torch
from torch import nn

from t2v_edge.bundle.tokenizer import tokenizer_errors
from t2v_edge.errors import CheckpointError
from t2v_edge.spec import STAGES, StageSpec, TensorSpec, check_stages
from t2v_edge.util.files import atomic_folder
from t2v_edge.util.targets import TargetKind
from t2v_export.checkpoint.config import CheckpointConfig, StageConfig, parse_config
from t2v_export.checkpoint.target import (
    COMPRESSED,
    EVALUATOR_FILES,
    MAX_CONFIG_BYTES,
    SAVED,
    WEIGHTS,
    WEIGHTS_FILES,
    WRITTEN,
    written_note,
)
from t2v_export.models import build_stage
from t2v_export.models.contract import spec_of
from t2v_export.weights.folder import folder_sha256, needed_file, plain_file
from t2v_export.weights.tensors import (
    MAX_FILE_BYTES,
    load_weights,
    pack_weights,
    read_weights,
    tensors_sha256,
    with_metadata,
)

MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Trained modules in evaluation mode, float32, without gradients; `tokenizer` is tokenizer.json's text."""

    config: CheckpointConfig
    text: nn.Module
    motion: nn.Module
    render: nn.Module
    tokenizer: str
    card: str
    sha256: str
    folder: Path

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The stage modules by stage name, in the order of `STAGES`."""
        return {"text": self.text, "motion": self.motion, "render": self.render}

    @property
    def specs(self) -> Mapping[str, StageSpec]:
        """The contracts as a bundle has them: `frame` is uint8 (1, H, W, 3) RGB."""
        specs = {stage: spec_of(module) for stage, module in self.modules.items()}
        frame = TensorSpec("frame", (1, self.config.height, self.config.width, 3), "uint8")
        results = tuple(frame if r.name == "frame" else r for r in specs["render"].results)
        return {**specs, "render": replace(specs["render"], results=results)}


def load_checkpoint(path: Path | str, allow_code: bool = False) -> Checkpoint:
    """Read and check a checkpoint folder. `allow_code` permits to import the `module:Class` files in it.

    Raises `CheckpointError` with the file, weight or setting and the remedy, `SpecError` if the stages do not fit
    together. No file outside the folder is read, no pickle is opened, no encoder code is run.
    """
    root = Path(path)
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; a checkpoint is a folder with config.json in it")
    written = needed_file(root, "config.json", MAX_CONFIG_BYTES, "is this a checkpoint folder?")
    config = parse_config(written.read_bytes())
    for name in EVALUATOR_FILES:
        plain_file(root, name, MAX_FILE_BYTES)
    digest = folder_sha256(root)
    tokenizer = _read_tokenizer(root)
    modules = {stage: _load_stage(root, config, stage, allow_code) for stage in STAGES}
    card = plain_file(root, "README.md", MAX_CONFIG_BYTES)
    text = card.read_text("utf-8", "replace") if card else ""
    checkpoint = Checkpoint(config, **modules, tokenizer=tokenizer, card=text, sha256=digest, folder=root.resolve())
    _check_specs(checkpoint)
    return checkpoint


def _load_stage(root: Path, config: CheckpointConfig, stage: str, allow_code: bool) -> nn.Module:
    name, options = config.stages[stage].class_name, config.stages[stage].options
    code = root if allow_code else None
    module = build_stage(stage, name, options, **config.sizes, folder=root / "encoder", code=code)
    own = tuple(getattr(module, "loads_itself", ()))
    tensors = read_weights(root, WEIGHTS[stage])
    if tensors is None:
        if not own or any(not key.startswith(own) for key in module.state_dict()):
            raise CheckpointError(
                f"checkpoint {root} has no {WEIGHTS[stage]}.safetensors; save the {stage} stage's weights there"
            )
        tensors = {}
    load_weights(module, tensors, f"{WEIGHTS[stage]}.safetensors", own)
    return module.float().eval().requires_grad_(False)


def _read_tokenizer(root: Path) -> str:
    path = needed_file(root, "encoder/tokenizer.json", MAX_TOKENIZER_BYTES, "save a fast tokenizer there")
    with tokenizer_errors(CheckpointError, "encoder/tokenizer.json is damaged or no tokenizer", "save it again"):
        text = path.read_text("utf-8")
        tokenizers.Tokenizer.from_str(text)
    return text


def _check_specs(checkpoint: Checkpoint) -> None:
    config, specs = checkpoint.config, checkpoint.specs
    check_stages(specs["text"], specs["motion"], specs["render"])
    frame = spec_of(checkpoint.render).results[0]
    wanted = TensorSpec("frame", (1, 3, config.height, config.width))
    if frame != wanted:
        raise CheckpointError(f"stage render: its spec must make {wanted}, not {frame}")
    for made, size in (("condition", config.condition_size), ("motion", config.motion_size)):
        result = {r.name: r for s in ("text", "motion") for r in specs[s].results}[made]
        if result.shape != (1, size):
            raise CheckpointError(f"{made} has shape {result.shape}, but config.json says {made}_size {size}")


def save_checkpoint(
    path: Path | str,
    config: CheckpointConfig,
    modules: Mapping[str, nn.Module],
    *,
    tokenizer: str,
    card: str = "",
    evaluator: Mapping[str, bytes] | None = None,
    code: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    kind: TargetKind = SAVED,
) -> None:
    """Write a checkpoint folder, whole or not at all, floats in `dtype`.

    `modules` are the stages by name; `tokenizer` the text of tokenizer.json; `evaluator` the files of
    `evaluator/` by name; `code` the sources of user classes by file name. A text module that loads a part of
    itself from `encoder/` has `save_encoder() -> (config dict, state dict)`. `kind` says what is replaced. A
    `COMPRESSED` one is checked at the end alone, see `atomic_file`. Raises `CheckpointError` for weights that are not
    finite, and for a path that holds anything else.
    """
    files: dict[str, bytes] = {"config.json": _json(config.to_json()), "README.md": card.encode()}
    files["encoder/tokenizer.json"] = tokenizer.encode()
    for stage in STAGES:
        module = modules[stage]
        own = tuple(getattr(module, "loads_itself", ()))
        state = {k: v for k, v in module.state_dict().items() if not (own and k.startswith(own))}
        if own:
            settings, encoder = module.save_encoder()  # type: ignore[operator]
            files["encoder/config.json"] = _json(settings)
            files["encoder/model.safetensors"] = pack_weights(encoder, dtype)
        if state or not own:
            files[f"{WEIGHTS[stage]}.safetensors"] = pack_weights(state, dtype)
    files |= {f"evaluator/{name}": data for name, data in (evaluator or {}).items()}
    files |= {name: source.encode() for name, source in (code or {}).items()}
    if kind is COMPRESSED:
        holder = max(set(files) & set(WEIGHTS_FILES))
        note = written_note({name: data for name, data in files.items() if name != holder})
        files[holder] = with_metadata(files[holder], {WRITTEN: note})
    with atomic_folder(Path(path), kind, late=kind is COMPRESSED) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def save_loaded(
    checkpoint: Checkpoint, path: Path | str, dtype: torch.dtype = torch.float16, kind: TargetKind = SAVED
) -> None:
    """Write a loaded checkpoint, with its evaluator and its own code, whole or not at all.

    Evaluator and code are read from `checkpoint.folder`. See `save_checkpoint`. Raises `CheckpointError`.
    """
    evaluator = {name: plain_file(checkpoint.folder, name, MAX_FILE_BYTES) for name in EVALUATOR_FILES}
    save_checkpoint(
        path,
        checkpoint.config,
        checkpoint.modules,
        tokenizer=checkpoint.tokenizer,
        card=checkpoint.card,
        evaluator={Path(name).name: found.read_bytes() for name, found in evaluator.items() if found is not None},
        code=_own_code(checkpoint),
        dtype=dtype,
        kind=kind,
    )


def with_stages(
    checkpoint: Checkpoint,
    modules: Mapping[str, nn.Module],
    configs: Mapping[str, StageConfig] = {},
    tokenizer: str | None = None,
) -> Checkpoint:
    """A new checkpoint with other modules and `configs` of stages, and the hash of its new content. The rest stays.

    `folder` stays the original one: evaluator and user classes are there. Raises `CheckpointError` and `SpecError` if
    the stages do not fit together.
    """
    tokenizer = checkpoint.tokenizer if tokenizer is None else tokenizer
    config = replace(checkpoint.config, stages=MappingProxyType({**checkpoint.config.stages, **configs}))
    stages: dict[str, Any] = {**modules}
    made = replace(checkpoint, config=config, tokenizer=tokenizer, **stages)
    _check_specs(made)
    digest = hashlib.sha256(_json(config.to_json()))
    for text in (tokenizer, made.card, *_own_code(made).values()):
        digest.update(hashlib.sha256(text.encode()).digest())
    for module in made.modules.values():
        digest.update(tensors_sha256(module.state_dict()).encode())
    return replace(made, sha256=digest.hexdigest())


def _own_code(checkpoint: Checkpoint) -> dict[str, str]:
    """Sources of the user classes that the config names, by file name."""
    names = {s.class_name.partition(":")[0] + ".py" for s in checkpoint.config.stages.values() if ":" in s.class_name}
    return {
        name: needed_file(checkpoint.folder, name, MAX_CONFIG_BYTES, "put the class's file there").read_text("utf-8")
        for name in sorted(names)
    }


def _json(data: object) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
