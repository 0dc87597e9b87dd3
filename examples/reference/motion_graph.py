"""Endless training sequences from short clips: a motion graph (Kovar et al., SIGGRAPH 2002) with styles.

A stream draws one style z ~ N(0, I) of 8 numbers and keeps it for every caption. Each clip has a fixed direction on
the sphere as its code. Of each action, a style plays the clip whose code it points at most. So any draw of z means one
clip of every action, and the motion stage learns a deterministic cycle for each. A mirrored clip's code is its
original's with the first number negated: the sign of z[0] is the person's handedness. Of an action with many clips
the `typical` are played; the others still serve the renderer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from examples.reference.motion_data import Clip, bone_lengths, features, mirror
from examples.reference.vocabulary import ACTIONS, FPS, JOINTS
from t2v_export.models.skeletal import JOINTS as JOINT_COLUMNS
from t2v_export.models.skeletal import PROP, SPIN, STEP, project_bones

STYLE_SIZE = 8
CHOICES = 12
"""Ways to do an action, mirrored ones counted."""
LOOP_BLEND = 5
SWITCH_BLEND = 10
SHORTEST_STAY = 24
_FIRST_PART = 0.45
_STILL = 0.35


@dataclass(frozen=True)
class Sequences:
    """Training sequences: `poses` (n, T, 74), `actions` (n, T) index into ACTIONS, `styles` (n, 8).

    Every sequence starts from the neutral pose, as a stream does; the label changes where the blend to the new
    action begins.
    """

    poses: np.ndarray
    actions: np.ndarray
    styles: np.ndarray


@dataclass(frozen=True)
class _Path:
    """A sequence as a mix of two rows of the graph's frames: (1 - mix) x before + mix x after."""

    before: np.ndarray
    after: np.ndarray
    mix: np.ndarray
    actions: np.ndarray


class MotionGraph:
    """Plays clips without end: at its end a clip continues in its own first part where pose and velocity are nearest.

    A change of action continues in the first part of the new action's clip; both are blended over a few frames. The
    jumps are deterministic, so a model can learn them. Frames of all clips lie in `poses` (N, 74); its last row is
    `neutral`. `codes` (12, choices, 8) are the clips' codes by action, `unused` (12, choices) marks those of no clip.
    """

    def __init__(self, clips: list[Clip], choices: int = CHOICES, seed: int = 0) -> None:
        if not 1 <= choices <= 2 * (STYLE_SIZE - 1):
            raise ValueError(f"choices must be 1 to {2 * (STYLE_SIZE - 1)}, not {choices}")
        self.clips = clips = typical(clips, choices)
        parts = [features(clip) for clip in clips]
        self.neutral = neutral_pose(clips)
        self.poses = np.concatenate(parts + [self.neutral[None]])
        self.lengths = bone_lengths(clips)
        ends = np.cumsum([len(p) for p in parts])
        self._start, self._end = ends - [len(p) for p in parts], ends
        self._keys = np.concatenate([_keys(p) for p in parts] + [_keys(self.neutral[None])])
        self._codes = _codes(clips, seed)
        self._of_action = [np.array([i for i, c in enumerate(clips) if c.action == a], int) for a in ACTIONS]
        self.actions = [i for i, found in enumerate(self._of_action) if len(found)]
        self.codes = np.zeros((len(ACTIONS), choices, STYLE_SIZE), np.float32)
        self.unused = np.ones((len(ACTIONS), choices), bool)
        for action, found in enumerate(self._of_action):
            self.codes[action, : len(found)], self.unused[action, : len(found)] = self._codes[found], False
        self._jumps: dict[tuple[int, int], int] = {}

    def clip_of(self, action: int, style: np.ndarray) -> int:
        """Which clip a style (8,) plays of an action."""
        among = self._of_action[action]
        return int(among[np.argmax(self._codes[among] @ style)])

    def sequences(self, n: int, length: int, *, switch: float = 0.0, seed: int = 0) -> Sequences:
        """`n` sequences of `length` frames, balanced by action, with fresh styles.

        `switch` is the chance a frame that the action changes to any other (after a stay of `SHORTEST_STAY`).
        """
        rng = np.random.default_rng(seed)
        styles = rng.standard_normal((n, STYLE_SIZE)).astype(np.float32)
        paths = [self._path(length, self.actions[i % len(self.actions)], styles[i], switch, rng) for i in range(n)]
        before, after = np.stack([p.before for p in paths]), np.stack([p.after for p in paths])
        mix = np.stack([p.mix for p in paths])[..., None]
        poses = self.poses[before] * (1 - mix) + self.poses[after] * mix
        joints = torch.from_numpy(poses[..., JOINT_COLUMNS]).unflatten(-1, (20, 3))
        poses[..., JOINT_COLUMNS] = project_bones(joints, torch.from_numpy(self.lengths)).flatten(-2).numpy()
        return Sequences(poses, np.stack([p.actions for p in paths]), styles)

    def _path(self, length: int, action: int, style: np.ndarray, switch: float, rng: np.random.Generator) -> _Path:
        room = length + 2 * SWITCH_BLEND
        before, after = np.zeros(room, np.int64), np.zeros(room, np.int64)
        mix, labels = np.zeros(room, np.float32), np.zeros(room, np.int64)
        clip = self.clip_of(action, style)
        row, last = len(self.poses) - 1, len(self.poses) - 1
        target, blend, t = self._nearest(row, clip, 1.0, SWITCH_BLEND), SWITCH_BLEND, 0
        stay = self._stay(switch, rng)
        while True:
            span = np.arange(blend)
            before[t : t + blend] = np.minimum(row + span, last)
            after[t : t + blend] = target + span
            mix[t : t + blend] = _smooth(span / blend) if t == 0 else _smooth((span + 1) / (blend + 1))
            labels[t : t + blend] = action
            t, row, last = t + blend, target + blend, int(self._end[clip]) - 1
            run = min(last - LOOP_BLEND - row, stay - t if stay - t >= 0 else 0, length - t)
            run = max(run, 0)
            before[t : t + run] = after[t : t + run] = row + np.arange(run)
            labels[t : t + run] = action
            t, row = t + run, row + run
            if t >= length:
                return _Path(before[:length], after[:length], mix[:length], labels[:length])
            if t >= stay:
                action = int(rng.choice([a for a in self.actions if a != action] or self.actions))
                clip, blend, stay = self.clip_of(action, style), SWITCH_BLEND, t + self._stay(switch, rng)
            else:
                blend = LOOP_BLEND
            target = self._nearest(row, clip, _FIRST_PART, blend)

    def _stay(self, switch: float, rng: np.random.Generator) -> int:
        return SHORTEST_STAY + int(rng.exponential(1 / switch)) if switch > 0 else 1 << 30

    def _nearest(self, row: int, clip: int, part: float, blend: int) -> int:
        """The row of `clip`'s first part, with room for a blend and a few frames, nearest to `row`."""
        key = (row, clip * 2 + (part == 1.0))
        if key not in self._jumps:
            start, frames = int(self._start[clip]), int(self._end[clip] - self._start[clip])
            choices = max(1, min(int(part * frames), frames - blend - LOOP_BLEND - 2))
            distance = np.square(self._keys[start : start + choices] - self._keys[row]).sum(1)
            self._jumps[key] = start + int(distance.argmin())
        return self._jumps[key]


def typical(clips: list[Clip], choices: int) -> list[Clip]:
    """Of each action the clips worth playing for ever, with their mirror images where there are any, `choices` at most.

    Long ones that hardly stand still and whose mean speed is near the action's come first.
    """
    kept: set[str] = set()
    for action in ACTIONS:
        mine = [c for c in clips if c.action == action and not c.mirrored]
        each = 2 if any(c.action == action and c.mirrored for c in clips) else 1
        speeds = {c.name: np.linalg.norm(np.diff(c.joints, axis=0), axis=-1).mean(1) * FPS for c in mine}
        usual = np.concatenate(list(speeds.values())).mean() if mine else 1.0

        def worth(clip: Clip, speeds: dict[str, np.ndarray] = speeds, usual: float = usual) -> float:
            speed = speeds[clip.name]
            ratio = max(float(speed.mean()), 1e-6) / usual
            moving = (gaussian_filter1d(speed, FPS / 4, mode="nearest") > _STILL).mean()
            return len(speed) * float(moving) ** 4 * min(ratio, 1 / ratio) ** 2

        kept |= {c.name for c in sorted(mine, key=worth, reverse=True)[: choices // each]}
    return [c for c in clips if (c.name.rsplit(":", 1)[0] if c.mirrored else c.name) in kept]


def neutral_pose(clips: list[Clip]) -> np.ndarray:
    """A calm, symmetric standing pose (74,) from the clips, with no prop: where every stream starts."""
    best, found = np.inf, clips[0]
    frame = 0
    hands = [JOINTS.index("l_hand"), JOINTS.index("r_hand")]
    for clip in clips:
        pose, other = features(clip)[:, :60].reshape(-1, 20, 3), features(mirror(clip))[:, :60].reshape(-1, 20, 3)
        asymmetry = np.linalg.norm(pose - other, axis=-1).mean(1)
        width = np.linalg.norm(pose[:, hands][..., [0, 2]], axis=-1).mean(1)
        legs = np.abs(pose[:, JOINTS.index("l_toe"), 1] - pose[:, JOINTS.index("r_toe"), 1])
        score = asymmetry + width + pose[:, hands, 1].mean(1) - pose[:, JOINTS.index("head"), 1] + legs
        if score.min() < best:
            best, found, frame = float(score.min()), clip, int(score.argmin())
    pose, other = features(found)[frame], features(mirror(found))[frame]
    middle = torch.from_numpy((pose[:60] + other[:60]).reshape(20, 3) / 2)
    joints = project_bones(middle, torch.from_numpy(bone_lengths(clips))).numpy()
    out = np.zeros_like(pose)
    out[:60] = joints.ravel()
    out[PROP] = np.tile(joints[JOINTS.index("r_hand")], 2)
    return out


def _smooth(x: np.ndarray) -> np.ndarray:
    return x * x * (3 - 2 * x)


def _keys(poses: np.ndarray) -> np.ndarray:
    """What two frames must share to be joined: joints, their velocities, the hip's step and the spin."""
    joints = poses[:, JOINT_COLUMNS]
    velocity = np.diff(joints, axis=0, prepend=joints[:1])
    if len(velocity) > 1:
        velocity[0] = velocity[1]
    return np.concatenate([joints, 5 * velocity, 8 * poses[:, STEP], 3 * poses[:, SPIN]], 1)


def _codes(clips: list[Clip], seed: int) -> np.ndarray:
    """Unit codes (clips, 8), as far apart within an action as can be, so that styles share its clips evenly.

    The first number is +0.6, or -0.6 where mirrored; the rest are plus or minus the rows of a random rotation.
    """
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((STYLE_SIZE - 1, STYLE_SIZE - 1)))[0]
    directions = 0.8 * np.concatenate([rotation, -rotation])
    codes: dict[str, np.ndarray] = {}
    for action in ACTIONS:
        for index, clip in enumerate(c for c in clips if c.action == action and not c.mirrored):
            codes[clip.name] = directions[index]
    hands = {False: 0.6, True: -0.6}
    rows = [
        np.concatenate([[hands[c.mirrored]], codes[c.name.rsplit(":", 1)[0] if c.mirrored else c.name]]) for c in clips
    ]
    return np.stack(rows).astype(np.float32)
