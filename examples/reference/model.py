"""The reference model's architecture, as it stands in the checkpoint's `config.json`."""

from __future__ import annotations

from typing import Any

from . import drawing
from .vocabulary import (
    ACTIONS,
    CONDITION_SIZE,
    FPS,
    HIP_HEIGHT,
    JOINT_SCALE,
    LOOK_SLOTS,
    MOTION_SIZE,
    PARENTS,
    PRESENCE_SLICE,
    PROP_SLICE,
    SLOT_SIZES,
    slot_slices,
)

SIZE = 256
TOKENS = 48
BLEND_STEPS = 6


def render_options(channels: tuple[int, ...] = (256, 320, 256, 160, 96, 48, 32)) -> dict[str, Any]:
    """Options of the render stage, a `PoseRenderer` that knows the drawing's camera."""
    slices = slot_slices()
    return {
        "channels": list(channels),
        "look": [[slices[slot].start, SLOT_SIZES[slot]] for slot in LOOK_SLOTS],
        "layout": {
            "joints": [0, len(PARENTS)],
            "prop": PROP_SLICE.start,
            "presence": [PRESENCE_SLICE.start, PRESENCE_SLICE.stop - PRESENCE_SLICE.start],
            "lift": HIP_HEIGHT,
            "scale": JOINT_SCALE,
            "bones": [[parent, joint] for joint, parent in enumerate(PARENTS) if parent >= 0],
            "camera": {
                "distance": drawing.CAMERA_DISTANCE,
                "height": drawing.CAMERA_HEIGHT,
                "pitch": drawing.CAMERA_PITCH,
                "focal": drawing.CAMERA_FOCAL,
            },
        },
        "maps": [16, 32, 64],
        "depth_maps": [16, 32],
        "bias_levels": [16, 32, 64, 128],
    }


def text_options() -> dict[str, Any]:
    """Options of the text stage: one attention query and one group of probabilities a slot."""
    return {"tokens": TOKENS, "pooling": "attention", "queries": len(SLOT_SIZES), "groups": list(SLOT_SIZES.values())}


def motion_options(hidden: int = 512) -> dict[str, Any]:
    """Options of the motion stage."""
    return {"cell": "gru", "hidden": hidden, "layers": 1, "action_size": len(ACTIONS)}


def config(name: str = "reference") -> dict[str, Any]:
    """The whole `config.json` (see docs/formats.md)."""
    return {
        "format": "t2v-checkpoint",
        "format_version": 1,
        "name": name,
        "video": {"height": SIZE, "width": SIZE, "fps": FPS},
        "condition_size": CONDITION_SIZE,
        "motion_size": MOTION_SIZE,
        "blend_steps": BLEND_STEPS,
        "condition_groups": list(SLOT_SIZES.values()),
        "stages": {
            "text": {"class": "transformers", "options": text_options()},
            "motion": {"class": "skeletal", "options": motion_options()},
            "render": {"class": "pose", "options": render_options()},
        },
    }
