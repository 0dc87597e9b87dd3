"""Reference vectors to check engines by, besides the golden ones: ONNX Runtime's results for other captions."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.golden import Golden
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import is_installed, open_engine
from t2v_edge.spec import STAGES

CAPTIONS = ("a person is playing basketball", "一个人正在打篮球", "a woman is dancing")
SEED = 1
STEPS = 64
FRAME_STEPS = (0, 15, 31, 63)
MOST_EXACT = ("fp32", "fp16")


def make_reference(bundle: Bundle) -> Optional[Golden]:
    """A rollout of `STEPS` free steps by ONNX Runtime on the CPU, in the most exact variant of each stage.

    None if ONNX Runtime is not installed. Raises `EngineError` for a graph that does not run in it.
    """
    if not is_installed("onnxruntime"):
        return None
    manifest = bundle.manifest
    tokenizer = CaptionTokenizer(bundle.tokenizer_json, manifest.tokenizer.tokens, manifest.tokenizer.pad_id)
    tokens = [tokenizer(caption) for caption in CAPTIONS]
    draws = Draws(manifest.stages["motion"], manifest.stages["render"], SEED)
    engines = {}
    for stage in STAGES:
        variant = next((v for v in MOST_EXACT if stage in manifest.variants.get(v, {})), manifest.default[stage])
        spec = manifest.stages[stage]
        engines[stage] = open_engine("onnxruntime", bundle.graph(variant, stage), spec, EngineOptions())
    made = [engines["text"].run({"input_ids": t.ids, "attention_mask": t.mask})["condition"] for t in tokens]
    arrays: dict[str, npt.NDArray[Any]] = {
        "captions": np.asarray([t.text for t in tokens]),
        "input_ids": np.concatenate([t.ids for t in tokens]),
        "attention_mask": np.concatenate([t.mask for t in tokens]),
        "condition": np.concatenate(made),
        "frame_steps": np.asarray(FRAME_STEPS, np.int64),
    }
    arrays.update({f"motion.{name}": value for name, value in draws.motion.items()})
    arrays.update({f"render.{name}": value for name, value in draws.render.items()})
    arrays.update({name.replace("state.", "start.", 1): value for name, value in draws.states.items()})
    states, motions, noises = dict(draws.states), [], []
    for _ in range(STEPS):
        noises.append(draws.step())
        # The check feeds the text stage's own condition, so the motion stage gets the same here.
        feeds = {"condition": made[0], **draws.motion, **noises[-1], **states}
        results = engines["motion"].run(feeds)
        states = {s.input: results[s.output] for s in manifest.stages["motion"].states}
        motions.append(results["motion"])
    arrays["motion"] = np.concatenate(motions)
    arrays.update({s.output: states[s.input] for s in manifest.stages["motion"].states})
    for name in noises[0]:
        arrays[f"motion.{name}"] = np.concatenate([step[name] for step in noises])
    feeds = {"condition": made[0], **draws.render}
    arrays["frames"] = np.concatenate(
        [engines["render"].run({"motion": motions[step], **feeds})["frame"] for step in FRAME_STEPS]
    )
    for engine in engines.values():
        engine.close()
    return Golden(manifest, arrays)
