"""A tiny bundle with golden vectors that its own FP32 graphs made in ONNX Runtime."""

from __future__ import annotations

import io

import numpy as np

from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine

CAPTIONS = ("a person is walking", "一个人 running", "dancing")
STEPS, FRAME_STEPS, SEED = 6, (0, 5), 7


def golden_arrays(tiny) -> dict[str, np.ndarray]:
    """Golden vectors of the FP32 graphs of `tiny`, as t2v_export writes them."""
    manifest = tiny.manifest
    engines = {
        stage: open_engine("onnxruntime", tiny.files[f"fp32/{stage}.onnx"], spec, EngineOptions(1))
        for stage, spec in manifest.stages.items()
    }
    tokenizer = CaptionTokenizer(tiny.files["tokenizer.json"], manifest.tokenizer.tokens, manifest.tokenizer.pad_id)
    tokens = [tokenizer(caption) for caption in CAPTIONS]
    condition = np.concatenate(
        [engines["text"].run({"input_ids": t.ids, "attention_mask": t.mask})["condition"] for t in tokens]
    )
    draws = Draws(manifest.stages["motion"], manifest.stages["render"], SEED)
    states, moved, steps = draws.states, [], [draws.step() for _ in range(STEPS)]
    for noises in steps:
        made = engines["motion"].run({"condition": condition[:1], **draws.motion, **noises, **states})
        states = {"state.hidden": made["next.hidden"]}
        moved.append(made["motion"])
    motion = np.concatenate(moved)
    frames = [
        engines["render"].run({"motion": motion[s : s + 1], "condition": condition[:1], **draws.render})["frame"]
        for s in FRAME_STEPS
    ]
    return {
        "seed": np.array([SEED]),
        "captions": np.array(CAPTIONS),
        "input_ids": np.concatenate([t.ids for t in tokens]),
        "attention_mask": np.concatenate([t.mask for t in tokens]),
        "condition": condition,
        "motion": motion,
        "next.hidden": states["state.hidden"],
        "start.hidden": draws.states["state.hidden"],
        "motion.noise.code": draws.motion["noise.code"],
        "motion.noise.jitter": np.concatenate([n["noise.jitter"] for n in steps]),
        "render.noise.look": draws.render["noise.look"],
        "frame_steps": np.array(FRAME_STEPS),
        "frames": np.concatenate(frames),
    }


def pack(arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
