"""Tiny checkpoints of random weights, made in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from t2v_edge.device.profile import DeviceProfile, load_profile
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import save_checkpoint
from t2v_export.checkpoint.config import CheckpointConfig, StageConfig
from t2v_export.models import build_stage

CONDITION, MOTION, SIDE = 6, 5, 16
WORDS = ("[PAD]", "[UNK]", "a", "person", "is", "walking", "running", "dancing", "一", "个", "人", "跑", "步")
TEXT = StageConfig("text-cnn", {"vocabulary": len(WORDS), "tokens": 12, "embedding": 8, "filters": 8, "groups": [4, 2]})
MOVE = StageConfig("recurrent", {"cell": "gru", "hidden": 8, "noise": 2, "start": "normal"})
DRAW = StageConfig("upsample", {"channels": [12, 8], "noise_size": 3})

MakeCheckpoint = Callable[..., Path]


def word_tokenizer() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return str(tokenizer.to_str())


def randomize(module: torch.nn.Module) -> None:
    """Statistics and biases far from their start, so that a norm that is lost or folded wrongly shows."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(part.running_mean, 0, 0.5)
            torch.nn.init.uniform_(part.running_var, 0.3, 2)
            torch.nn.init.normal_(part.weight, 1, 0.3)
            torch.nn.init.normal_(part.bias, 0, 0.3)


def build_checkpoint(
    target: Path, side: int = SIDE, code: Path | None = None, folder: Path | None = None, **stages: Any
) -> Path:
    torch.manual_seed(0)
    chosen = {"text": TEXT, "motion": MOVE, "render": DRAW, **stages}
    config = CheckpointConfig("tiny", side, side, 16, CONDITION, MOTION, chosen)
    modules = {}
    for stage in STAGES:
        modules[stage] = build_stage(
            stage,
            chosen[stage].class_name,
            chosen[stage].options,
            condition_size=CONDITION,
            motion_size=MOTION,
            height=side,
            width=side,
            folder=folder,
            code=code,
        )
        randomize(modules[stage])
    sources = {p.name: p.read_text("utf-8") for p in code.glob("*.py")} if code else {}
    save_checkpoint(target, config, modules, tokenizer=word_tokenizer(), card="# tiny\n", code=sources)
    return target


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """make_checkpoint(name="checkpoint", side=16, code=None, folder=None, **stages) -> the checkpoint's folder."""
    return lambda name="checkpoint", **options: build_checkpoint(tmp_path / name, **options)


@pytest.fixture
def cpu() -> DeviceProfile:
    return load_profile("cpu")
