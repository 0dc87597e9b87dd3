"""A process of its own that plays one mix and prints how far its memory grew (`python -m` this module)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from t2v_edge.util.memory import process_memory
from t2v_export.evaluate import play
from t2v_export.evaluate.mixes import EnginePool, VariantMix


def main(arguments: list[str]) -> int:
    bundle, engine, caption, seconds, *choices = arguments
    mix = VariantMix("mix", Path(bundle), dict(part.split("=", 1) for part in choices))
    importlib.import_module(f"t2v_edge.engine.{engine}")  # the engine's library is no part of what a mix needs
    before = process_memory().peak_bytes
    with EnginePool(engine, None) as pool:
        pipeline = pool.pipeline(mix)
        steps = max(1, round(float(seconds) * pipeline.manifest.video.fps))
        draws = play.draws_of(pipeline, 0)
        for step, _ in zip(play.step_motion(pipeline, ((0, caption),), draws), range(steps)):
            play.render_at(pipeline, play.Take(step.motion, step.condition, draws.render), 0)
        sys.stdout.write(f"{process_memory().peak_bytes - before}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
