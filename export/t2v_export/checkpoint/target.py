"""What a checkpoint may replace: a checkpoint that the toolchain wrote, with no other file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors

from t2v_edge.errors import CheckpointError
from t2v_edge.util.targets import TargetKind, foreign_entry
from t2v_export.checkpoint.config import parse_config
from t2v_export.weights.folder import plain_file

WRITTEN = "written"
"""In the metadata of a weights file of a compressed checkpoint: the SHA-256 of each other file, as JSON."""
MAX_CONFIG_BYTES = 1 << 20
EVALUATOR_FILES = ("evaluator/evaluator.json", "evaluator/evaluator.safetensors", "evaluator/evaluator.onnx")
WEIGHTS = {"text": "encoder/head", "motion": "motion", "render": "render"}
WEIGHTS_FILES = (*(f"{stem}.safetensors" for stem in WEIGHTS.values()), "encoder/model.safetensors")
OTHER_FILES = ("config.json", "README.md", "encoder/tokenizer.json", "encoder/config.json", *EVALUATOR_FILES)


def written_note(files: Mapping[str, bytes]) -> str:
    """The value of `WRITTEN` for these files."""
    return json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})


def _metadata(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Weights files and their metadata."""
    for name in WEIGHTS_FILES:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            try:
                with safetensors.safe_open(str(path), "np") as opened:
                    yield name, opened.metadata() or {}
            except Exception:  # noqa: BLE001 the library raises several kinds, all of which mean a damaged file
                yield name, {}


def _saved_flaw(folder: Path) -> str | None:
    try:
        config = plain_file(folder, "config.json", MAX_CONFIG_BYTES)
        stages = parse_config(config.read_bytes()).stages if config else {}
    except CheckpointError:
        stages = {}
    if not stages or not all("sha256" in metadata for _, metadata in _metadata(folder)):
        return "the toolchain did not write it"
    code = {stage.class_name.partition(":")[0] + ".py" for stage in stages.values() if ":" in stage.class_name}
    return _foreign(folder, {*WEIGHTS_FILES, *OTHER_FILES, *code})


def _compressed_flaw(folder: Path) -> str | None:
    for holder, metadata in _metadata(folder):
        try:
            written = json.loads(metadata.get(WRITTEN, "null"))
        except (ValueError, RecursionError):
            written = None
        if isinstance(written, dict):
            return _foreign(folder, {holder, *written}) or _changed(folder, written)
    return "t2v-edge compress did not write it"


def _foreign(folder: Path, names: set[str]) -> str | None:
    foreign = foreign_entry(folder, names)
    return None if foreign is None else f"{foreign} in it is not the checkpoint's"


def _changed(folder: Path, written: Mapping[str, str]) -> str | None:
    for name, sha256 in written.items():
        path = folder / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return f"{name} in it was changed"
    return None


SAVED = TargetKind("the checkpoint", _saved_flaw, CheckpointError, folder=True)
"""Any checkpoint that `save_checkpoint` wrote. A program that saves its own checkpoint again replaces it."""
COMPRESSED = TargetKind("the checkpoint", _compressed_flaw, CheckpointError, folder=True)
"""A result of compress that nobody changed: a model card is often edited, and trained weights are never made again."""
