"""Motion capture clips as training data: one skeleton, 16 fps, heading-frame features, camera-frame motion vectors.

The clips are CMU's (mocap.cs.cmu.edu, NSF EIA-0196217). `t2v_export.models.skeletal` describes the 74 features of a
pose. `examples.reference.vocabulary` describes the 75 numbers of a motion vector.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.reference.props import draw_props
from examples.reference.vocabulary import ACTIONS, FPS, JOINTS, MIRRORED, PARENTS
from t2v_export.models.skeletal import (
    PLACE_PERIOD,
    POSE_SIZE,
    PRESENCE,
    PROP,
    SPIN,
    STEP,
    project_bones,
    to_camera,
    travel,
)

SOURCE_FPS = 30.0
HELD_OUT_PART = 0.25
TOE_HEIGHT = 0.03
_SHORTEST = 13
_L_THIGH, _R_THIGH = JOINTS.index("l_thigh"), JOINTS.index("r_thigh")
_L_SHOULDER, _R_SHOULDER = JOINTS.index("l_shoulder"), JOINTS.index("r_shoulder")
_TOES = [JOINTS.index("l_toe"), JOINTS.index("r_toe")]


@dataclass(frozen=True)
class Clip:
    """One clip of one action at 16 fps on the common skeleton.

    `joints` (T, 20, 3) metres, y up, floor at 0; `prop` (T, 2, 3) metres, the ends of its prop; `presence` (T, 5).
    """

    name: str
    action: str
    split: str
    joints: np.ndarray
    prop: np.ndarray
    presence: np.ndarray
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.joints)


@dataclass(frozen=True)
class _Take:
    name: str
    action: str
    split: str
    joints: np.ndarray


def load_clips(data_dir: str | Path, *, mirrored: bool = False) -> list[Clip]:
    """All clips of the twelve actions, retargeted to one skeleton; `mirrored` appends a left-right copy of each.

    An action with one clip in all has that clip's last quarter in time as split ``test`` (named ``NAME:end``).
    `data_dir` holds `index.csv` and `motions.npz`. Raises `FileNotFoundError` where they are missing.
    """
    takes = _read_takes(Path(data_dir))
    lengths = _mean_bone_lengths(takes)
    clips = []
    for take in _hold_out(takes):
        joints = _retarget(take.joints, lengths)
        prop, presence = draw_props(joints, take.action, _forward(heading(joints)))
        clips.append(Clip(take.name, take.action, take.split, joints, prop, presence))
    return clips + [mirror(clip) for clip in clips] if mirrored else clips


def held_out(clips: list[Clip]) -> list[str]:
    """Names of clips that are the held-out last quarter of an action's only take."""
    return [clip.name for clip in clips if clip.name.endswith(":end")]


def bone_lengths(clips: list[Clip]) -> np.ndarray:
    """The common skeleton: the distance (20,) of each joint to its parent, metres; the hip's is 0."""
    return _lengths(clips[0].joints).astype(np.float32)


def mirror(clip: Clip) -> Clip:
    """The clip with left and right exchanged, its prop too."""
    flip = np.array([-1.0, 1.0, 1.0], np.float32)
    return replace(
        clip,
        name=clip.name + ":mirrored",
        joints=clip.joints[:, list(MIRRORED)] * flip,
        prop=clip.prop * flip,
        mirrored=not clip.mirrored,
    )


def heading(joints: np.ndarray) -> np.ndarray:
    """Heading (T,) in radians, unwrapped and lightly smoothed: 0 faces +z, positive turns towards +x."""
    side = joints[:, _L_THIGH] - joints[:, _R_THIGH] + joints[:, _L_SHOULDER] - joints[:, _R_SHOULDER]
    angle = np.unwrap(np.arctan2(-side[:, 2], side[:, 0]))
    kernel = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    return np.convolve(np.pad(angle, 2, "edge"), kernel, "valid")


def features(clip: Clip) -> np.ndarray:
    """The clip as poses (T, 74), float32: what the motion stage learns. See `t2v_export.models.skeletal`."""
    angle = heading(clip.joints)
    cosine, sine = np.cos(-angle), np.sin(-angle)

    def turned(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (-1,) + (1,) * (x.ndim - 1)
        c, s = cosine.reshape(shape), sine.reshape(shape)
        return c * x + s * z, c * z - s * x

    hip = clip.joints[:, 0]
    points = np.concatenate([clip.joints, clip.prop], 1)
    x, z = turned(points[..., 0] - hip[:, None, 0], points[..., 2] - hip[:, None, 2])
    local = np.stack([x, points[..., 1], z], -1)
    steps = np.diff(hip, axis=0, prepend=hip[:1])
    steps[0] = steps[1]
    spin = np.diff(angle, prepend=angle[:1])
    spin[0] = spin[1]
    out = np.empty((len(clip), POSE_SIZE), np.float32)
    out[:, :60] = local[:, :20].reshape(len(clip), 60)
    out[:, STEP] = np.stack(turned(steps[:, 0], steps[:, 2]), -1)
    out[:, SPIN] = spin[:, None]
    out[:, PROP] = local[:, 20:].reshape(len(clip), 6)
    out[:, PRESENCE] = clip.presence
    return out


def to_motion_vectors(poses: Tensor | np.ndarray, yaw: Tensor | np.ndarray | None = None) -> Tensor:
    """Play poses (n, T, 74) before cameras at `yaw` (n,) radians (0 where None); motion vectors (n, T, 75).

    Each sequence starts at place 0 facing the heading 0, as a stream does.
    """
    poses = torch.as_tensor(poses)
    view = torch.zeros(len(poses)) if yaw is None else torch.as_tensor(yaw)
    facing = poses[..., SPIN].cumsum(1) + view.to(poses)[:, None, None]
    cosine, sine = torch.cos(facing), torch.sin(facing)
    return to_camera(poses, cosine, sine, travel(poses, cosine, sine).cumsum(1))


class PoseBank:
    """Endless single poses for training a frame renderer, drawn on the device that holds the clips.

    Half of the poses are balanced by action and half by length. Each is mixed with another pose: its clip's next frame,
    a near pose of the same action, or (one in ten, as at a caption change) any pose. Joints are perturbed, and bones
    keep their lengths. Presence is faded now and then. Yaw and place on the floor are random.
    """

    NEIGHBOURS = 4

    def __init__(self, clips: list[Clip], device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        parts = [features(clip) for clip in clips]
        self.poses = torch.from_numpy(np.concatenate(parts)).to(self.device)
        self.actions = torch.tensor([ACTIONS.index(c.action) for c in clips for _ in range(len(c))], device=self.device)
        ends = np.cumsum([len(p) for p in parts])
        following = np.arange(1, len(self.poses) + 1)
        following[ends - 1] = ends - 1
        self.following = torch.from_numpy(following).to(self.device)
        self.lengths = torch.from_numpy(bone_lengths(clips)).to(self.device)
        counts = torch.bincount(self.actions, minlength=len(ACTIONS)).clamp(min=1).float()
        balanced = 1 / counts[self.actions]
        self._weights = 0.5 * balanced / balanced.sum() + 0.5 / len(self.poses)
        self._near = self._nearest()

    def _nearest(self) -> Tensor:
        """For each pose the `NEIGHBOURS` nearest of its action, every third frame being a candidate."""
        near = torch.arange(len(self.poses), device=self.device)[:, None].repeat(1, self.NEIGHBOURS)
        for action in self.actions.unique():
            rows = torch.nonzero(self.actions == action)[:, 0]
            candidates = rows[::3]
            for part in rows.split(4096):
                distance = torch.cdist(self.poses[part, :60], self.poses[candidates, :60])
                distance = torch.where(distance < 1e-3, torch.inf, distance)
                found = distance.topk(min(self.NEIGHBOURS, len(candidates)), largest=False).indices
                near[part, : found.shape[1]] = candidates[found]
        return near

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` motion vectors (n, 75); `generator` lives on the bank's device."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=self.device)

        def pick(high: int) -> Tensor:
            return torch.randint(high, (n,), generator=generator, device=self.device)

        first = torch.multinomial(self._weights, n, replacement=True, generator=generator)
        kind = uniform(n)
        near = self._near[first, pick(self.NEIGHBOURS)]
        other = torch.where(kind < 0.5, self.following[first], torch.where(kind < 0.9, near, pick(len(self.poses))))
        mix = uniform(n, 1)
        pose = self.poses[first] * (1 - mix) + self.poses[other] * mix
        spread = 0.015 * (uniform(n, 1) < 0.5) * uniform(n, 1)
        noise = torch.randn(n, 60, generator=generator, device=self.device) * spread
        joints = project_bones((pose[:, :60] + noise).unflatten(-1, (20, 3)), self.lengths).flatten(1)
        faded = torch.where(uniform(n, 1) < 0.1, uniform(n, 1), torch.ones_like(mix))
        pose = torch.cat([joints, pose[:, STEP], pose[:, SPIN], pose[:, PROP], pose[:, PRESENCE] * faded], 1)
        yaw = 2 * torch.pi * uniform(n, 1)
        return to_camera(pose, torch.cos(yaw), torch.sin(yaw), uniform(n, 2) * PLACE_PERIOD)


def _read_takes(folder: Path) -> list[_Take]:
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["action"] in ACTIONS]
    with np.load(folder / "motions.npz") as arrays:
        takes = [_Take(r["clip"], r["action"], r["split"], _resample(arrays[r["clip"]])) for r in rows]
    return [take for take in takes if len(take.joints) >= _SHORTEST]


def _resample(joints: np.ndarray) -> np.ndarray:
    """From 30 to 16 frames a second, linearly."""
    times = np.arange(int((len(joints) - 1) * FPS / SOURCE_FPS) + 1) * (SOURCE_FPS / FPS)
    before = times.astype(int).clip(0, len(joints) - 2)
    mix = (times - before)[:, None, None]
    return (joints[before] * (1 - mix) + joints[before + 1] * mix).astype(np.float32)


def _hold_out(takes: list[_Take]) -> list[_Take]:
    """Cut the last quarter off every take that is its action's only one."""
    kept = []
    for take in takes:
        if sum(t.action == take.action for t in takes) > 1:
            kept.append(take)
            continue
        cut = round(len(take.joints) * (1 - HELD_OUT_PART))
        kept.append(replace(take, split="train", joints=take.joints[:cut]))
        kept.append(replace(take, split="test", joints=take.joints[cut:], name=take.name + ":end"))
    return kept


def _lengths(joints: np.ndarray) -> np.ndarray:
    parents = [max(p, 0) for p in PARENTS]
    return np.linalg.norm(joints - joints[:, parents], axis=-1).mean(0)


def _mean_bone_lengths(takes: list[_Take]) -> np.ndarray:
    lengths = np.mean([_lengths(take.joints) for take in takes if take.split == "train"], 0)
    return (lengths + lengths[list(MIRRORED)]) / 2


def _retarget(joints: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The same motion on a skeleton of these bone lengths, metres.

    Strides scale with the legs, toes stand at `TOE_HEIGHT`, nothing sinks through the floor.
    """
    legs = [JOINTS.index(n) for n in ("l_knee", "l_ankle", "r_knee", "r_ankle")]
    hip = joints[:, :1] * (lengths[legs].sum() / _lengths(joints)[legs].sum())
    moved = torch.from_numpy(joints - joints[:, :1]).double()
    out = project_bones(moved, torch.from_numpy(lengths).double()).numpy() + hip
    out[..., 1] += TOE_HEIGHT - np.percentile(out[:, _TOES, 1].min(1), 5)
    out[..., 1] += np.maximum(-out[..., 1].min(1), 0)[:, None]
    return out.astype(np.float32)


def _forward(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(angle), np.cos(angle)], -1)
