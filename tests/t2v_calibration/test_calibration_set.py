from __future__ import annotations

import numpy as np
import pytest

from t2v_calibration.calibration_set import CalibrationError, CalibrationOptions, collect
from t2v_edge.bundle.tokenizer import TokenizedCaption
from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec, TensorSpec

CONDITION, MOTION = TensorSpec("condition", (1, 4)), TensorSpec("motion", (1, 3))
SPECS = {
    "text": StageSpec(
        "text", (TensorSpec("input_ids", (1, 4), "int64"), TensorSpec("attention_mask", (1, 4), "int64")), (CONDITION,)
    ),
    "motion": StageSpec(
        "motion", (CONDITION,), (MOTION,), (NoiseSpec("step", (1, 3), cadence="step"),), (StateSpec("count", (1, 1)),)
    ),
    "render": StageSpec(
        "render", (MOTION, CONDITION), (TensorSpec("frame", (1, 2, 2, 3), "uint8"),), (NoiseSpec("content", (1, 2)),)
    ),
}
CAPTIONS = [chr(ord("a") + i) for i in range(10)]
SMALL = CalibrationOptions(text=5, motion=24, render=8, steps=12)


def tokenizer(caption: str) -> TokenizedCaption:
    ids = np.full((1, 4), ord(caption), np.int64)
    return TokenizedCaption(ids, np.ones((1, 4), np.int64), caption, False)


def run(stage, feeds):
    if stage == "text":
        return {"condition": feeds["input_ids"].astype(np.float32)}
    count = feeds["state.count"] + 1
    return {"motion": feeds["noise.step"] + count, "next.count": count}


def test_each_stage_gets_a_bounded_number_of_what_it_takes():
    made = collect(run, SPECS, tokenizer, CAPTIONS, 3, SMALL)
    assert {stage: len(feeds) for stage, feeds in made.samples.items()} == {"text": 5, "motion": 24, "render": 8}
    for stage, spec in SPECS.items():
        for feeds in made.samples[stage]:
            assert {n: (v.shape, str(v.dtype)) for n, v in feeds.items()} == {
                t.name: (t.shape, t.dtype) for t in spec.inputs
            }


def test_streams_carry_state_over_caption_changes_in_mid_run():
    made = collect(run, SPECS, tokenizer, CAPTIONS, 3, CalibrationOptions(text=10, motion=12, render=4, steps=24))
    counts = [int(feeds["state.count"][0, 0]) for feeds in made.samples["motion"]]
    assert max(counts) > 16  # past both changes, never back to 0 but where a stream starts
    whole = {float(ord(c)) for c in CAPTIONS}
    conditions = {float(feeds["condition"][0, 0]) for feeds in made.samples["motion"]}
    assert len(conditions & whole) >= 2 and conditions - whole, "captions and blends between them"


def test_render_sees_motion_between_base_steps():
    made = collect(run, SPECS, tokenizer, CAPTIONS, 3, SMALL)
    played = [feeds["motion"] for feeds in made.samples["render"]]
    assert len({m.tobytes() for m in played}) == len(played)


def test_same_seed_gives_the_same_hash_and_another_does_not():
    first, again = (collect(run, SPECS, tokenizer, CAPTIONS, 3, SMALL) for _ in range(2))
    other = collect(run, SPECS, tokenizer, CAPTIONS, 3, CalibrationOptions(5, 24, 8, 12, seed=1))
    assert first.sha256 == again.sha256 != other.sha256 and len(first.sha256) == 64


def test_no_captions_and_nan_are_typed_errors():
    with pytest.raises(CalibrationError, match="no captions"):
        collect(run, SPECS, tokenizer, [], 3, SMALL)

    def diverged(stage, feeds):
        made = run(stage, feeds)
        return {**made, "motion": made["motion"] * np.nan} if stage == "motion" else made

    with pytest.raises(CalibrationError, match="stage motion gives NaN"):
        collect(diverged, SPECS, tokenizer, CAPTIONS, 3, SMALL)
