"""Make the checkpoint of what was trained: python -m examples.reference.assemble RUN checkpoints/reference

`RUN` is the --out of `examples.reference.train`. A model card that is already in the folder is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from t2v_export.checkpoint.checkpoint import EVALUATOR_FILES, load_checkpoint, save_checkpoint
from t2v_export.checkpoint.config import CheckpointConfig
from t2v_export.models import build_stage

from .model import config
from .train_text import open_text
from .training import load_state


def trained_stage(settings: CheckpointConfig, stage: str, weights: Path) -> nn.Module:
    """The stage's module with the weights that its training script left."""
    shown = settings.stages[stage]
    module = build_stage(
        stage,
        shown.class_name,
        shown.options,
        condition_size=settings.condition_size,
        motion_size=settings.motion_size,
        height=settings.height,
        width=settings.width,
    )
    state: dict[str, Any] = dict(module.state_dict())  # integer buffers, such as BatchNorm's counters, stay
    state.update(load_state(weights))
    module.load_state_dict(state)
    return module.eval()


def assemble(run: Path, target: Path, name: str = "reference") -> None:
    """Write the checkpoint folder `target`, whole or not at all, and read it back."""
    settings = CheckpointConfig.from_json(config(name))
    modules = {
        "text": open_text(run / "text" / "encoder"),
        "motion": trained_stage(settings, "motion", run / "motion" / "motion.pt"),
        "render": trained_stage(settings, "render", run / "renderer" / "renderer.pt"),
    }
    card = target / "README.md"
    save_checkpoint(
        target,
        settings,
        modules,
        tokenizer=(run / "text" / "encoder" / "tokenizer.json").read_text("utf-8"),
        card=card.read_text("utf-8") if card.exists() else "",
        evaluator={Path(file).name: (run / file).read_bytes() for file in EVALUATOR_FILES},
    )
    load_checkpoint(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the --out folder of examples.reference.train")
    parser.add_argument("target", type=Path, help="the checkpoint folder to write")
    parser.add_argument("--name", default="reference", help="the checkpoint's name")
    args = parser.parse_args()
    assemble(args.run, args.target, args.name)


if __name__ == "__main__":
    main()
