"""A small synthetic motion capture folder: a person who walks, waves and turns, as 30 fps clips of 20 joints."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.reference.vocabulary import JOINTS, PARENTS

_OFFSETS = {
    "l_thigh": (0.1, -0.05, 0),
    "l_knee": (0, -0.42, 0.02),
    "l_ankle": (0, -0.42, -0.03),
    "l_toe": (0, -0.05, 0.12),
    "spine": (0, 0.3, 0),
    "neck": (0, 0.23, 0),
    "head": (0, 0.08, 0.01),
    "l_shoulder": (0.2, 0.17, 0),
    "l_elbow": (0.02, -0.27, 0),
    "l_wrist": (0, -0.26, 0.05),
    "l_hand": (0, -0.08, 0.02),
}


def person(frames: int, *, speed: float = 0.0, spin: float = 0.0, swing: float = 0.15, hz: float = 1.5) -> np.ndarray:
    """(frames, 20, 3) metres at 30 fps, walking forward at `speed` m/s and turning at `spin` rad/s.

    The right hand pumps up and down by `swing` metres at `hz`; the left hand and the feet swing to and fro.
    """
    seconds = np.arange(frames) / 30
    wave = np.sin(2 * np.pi * hz * seconds)
    local = np.zeros((frames, 20, 3))
    local[:, 0, 1] = 0.97
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            continue
        right = JOINTS[joint].startswith("r_")
        x, y, z = _OFFSETS["l_" + JOINTS[joint][2:]] if right else _OFFSETS[JOINTS[joint]]
        bone = np.tile([-x if right else x, y, z], (frames, 1)).astype(float)
        if JOINTS[joint] in ("l_knee", "l_ankle", "l_elbow", "r_knee", "r_ankle"):
            bone[:, 2] += (1 if right else -1) * 0.12 * wave
        if JOINTS[joint] == "r_wrist":
            bone = np.stack([np.zeros(frames), swing * wave, np.full(frames, 0.26)], -1)
        if JOINTS[joint] == "r_hand":
            bone = np.stack([np.zeros(frames), 0.3 * swing * wave, np.full(frames, 0.08)], -1)
        local[:, joint] = local[:, parent] + bone
    angle = spin * seconds
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, z = cosine * local[..., 0] + sine * local[..., 2], cosine * local[..., 2] - sine * local[..., 0]
    path = np.stack([np.cumsum(np.sin(angle)), np.cumsum(np.cos(angle))], -1) * speed / 30
    return np.stack([x + path[:, :1], local[..., 1], z + path[:, 1:]], -1).astype(np.float32)


def write_samples(folder: Path) -> Path:
    """Write `index.csv` and `motions.npz` with five actions; "punching" has one clip only."""
    clips = {
        "walk_1": ("walking", "train", person(90, speed=1.2)),
        "walk_2": ("walking", "train", person(75, speed=1.0, spin=0.8)),
        "walk_3": ("walking", "test", person(60, speed=1.1)),
        "dribble_1": ("dribbling a basketball", "train", person(120, swing=0.2, hz=1.6)),
        "dribble_2": ("dribbling a basketball", "test", person(60, swing=0.2, hz=1.6)),
        "soccer_1": ("playing soccer", "train", person(90, speed=2.0, spin=0.5)),
        "sword_1": ("sword fighting", "train", person(90, swing=0.3, hz=0.8)),
        "sword_2": ("sword fighting", "val", person(60, swing=0.3, hz=0.8)),
        "soccer_2": ("playing soccer", "val", person(60, speed=2.0)),
        "punch_1": ("punching", "train", person(120, swing=0.1, hz=2.5)),
        "climb_1": ("climbing", "train", person(60)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "motions.npz", **{name: joints for name, (_, _, joints) in clips.items()})
    rows = [f"{n},bvh,1,1,{action},{action},{len(joints)},0,{split}" for n, (action, split, joints) in clips.items()]
    header = "clip,source,subject,trial,cmu_description,action,frames,seconds,split"
    (folder / "index.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder
