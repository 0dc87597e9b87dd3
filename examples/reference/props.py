"""Props drawn for motion clips: balls, a sword, gloves and a sponge. None of them was captured.

A prop is a capsule between two ends, in metres in the clip's world frame (y up, floor at y = 0). A ball's ends are
equal. If a clip has no prop, both ends lie in the right hand with presence 0. A prop then fades in from there.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.signal import find_peaks

from examples.reference.vocabulary import FPS, JOINTS, PROP_OF_ACTION, PROPS

BASKETBALL_RADIUS = 0.12
FOOTBALL_RADIUS = 0.11
SWORD_LENGTH = 0.8
DRIBBLE_HZ = 1.7
MAX_BALL_STEP = 0.5
"""Metres a ball may move between two frames: 8 m/s."""

_HIP, _L_TOE, _R_TOE = JOINTS.index("hip"), JOINTS.index("l_toe"), JOINTS.index("r_toe")
_R_ELBOW, _R_WRIST = JOINTS.index("r_elbow"), JOINTS.index("r_wrist")
_L_HAND, _R_HAND = JOINTS.index("l_hand"), JOINTS.index("r_hand")
_PALM = 0.03
_HOLD, _OVERHEAD = 0.42, 1.45
_FLIGHT = 8


def draw_props(joints: np.ndarray, action: str, forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prop ends (T, 2, 3) in metres and presence (T, 5) in 0..1 for a clip.

    `joints` is (T, 20, 3) at 16 fps, `forward` the heading as unit vectors (T, 2) in x and z.
    """
    frames = len(joints)
    ends = np.repeat(joints[:, _R_HAND][:, None], 2, axis=1).copy()
    presence = np.zeros((frames, len(PROPS)), np.float32)
    prop = PROP_OF_ACTION.get(action)
    if prop is None:
        return ends.astype(np.float32), presence
    shown = np.ones(frames)
    if action == "dribbling a basketball":
        ends[:] = dribbled_ball(joints)[:, None]
    elif action == "shooting a basketball":
        ball, shown = shot_ball(joints, forward)
        ends[:] = ball[:, None]
    elif action == "playing soccer":
        ends[:] = rolling_ball(joints, forward)[:, None]
    elif action == "sword fighting":
        along = joints[:, _R_WRIST] - joints[:, _R_ELBOW]
        ends[:, 1] += SWORD_LENGTH * along / np.linalg.norm(along, axis=-1, keepdims=True).clip(1e-6)
        ends[:, 1, 1] = ends[:, 1, 1].clip(0.02)
    presence[:, PROPS.index(prop)] = shown
    return ends.astype(np.float32), presence


def dribbled_ball(joints: np.ndarray) -> np.ndarray:
    """The centre (T, 3) of a basketball bounced by whichever hand swings up and down.

    Under the hand while it pushes down from a top, then to the floor and back to meet the hand at its next top.
    """
    hand = _dribbling_hand(joints)
    touch = (hand[:, 1] - BASKETBALL_RADIUS - _PALM).clip(BASKETBALL_RADIUS)
    ball = hand.copy()
    ball[:, 1] = touch
    tops = _tops(hand[:, 1])
    for top, following in zip(tops[:-1], tops[1:]):
        period = following - top
        window = np.arange(int(np.ceil(top + 0.2 * period)), int(np.floor(top + 0.45 * period)) + 1)
        window = window.clip(0, len(hand) - 1)
        leaves = float(window[np.argmin(touch[window])]) if len(window) else top + 0.3 * period
        leaves = min(max(leaves, top + 0.2 * period), top + 0.45 * period)
        bounces = leaves + 0.42 * (following - leaves)
        if leaves + 0.5 < round(bounces) < following - 0.5:
            bounces = float(round(bounces))  # seen touching the floor
        times = np.arange(max(0, int(np.ceil(leaves))), min(len(hand), int(np.ceil(following))))
        frames = np.arange(len(hand))
        low, high = np.interp([leaves, following], frames, touch)
        down = ((times - leaves) / (bounces - leaves)).clip(0, 1)
        up = ((following - times) / (following - bounces)).clip(0, 1)
        falling = low - (low - BASKETBALL_RADIUS) * down * (0.5 + 0.5 * down)
        rising = high - (high - BASKETBALL_RADIUS) * up * (0.3 + 0.7 * up)
        ball[times, 1] = np.where(times <= bounces, falling, rising)
    return bounded(ball, BASKETBALL_RADIUS)


def shot_ball(joints: np.ndarray, forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A basketball (T, 3) dribbled until both hands meet around it, held until they part overhead, then shot.

    The ball leaves forward and up; its presence (T,) fades as it flies, and it is gone until the clip starts again.
    """
    left, right = joints[:, _L_HAND], joints[:, _R_HAND]
    frames = np.arange(len(joints))
    gap = np.linalg.norm(left - right, axis=-1)
    held = int(np.argmax(gap < _HOLD))
    overhead = (left[:, 1] + right[:, 1]) / 2 > _OVERHEAD
    narrowest = np.minimum.accumulate(np.where(frames >= held, gap, np.inf))
    parted = overhead & (gap > narrowest + 0.1)
    shot = int(np.argmax(parted)) if parted.any() else len(joints)
    mix = gaussian_filter1d((frames >= held).astype(float), 1.5, mode="nearest")[:, None]
    ball = mix * (left + right) / 2 + (1 - mix) * dribbled_ball(joints)
    shown = (1 - (frames - shot + 1) / _FLIGHT).clip(0, 1)
    flight = frames[(frames >= shot) & (shown > 0)]
    seconds = (flight - shot + 1)[:, None] / FPS
    if len(flight) and shot:
        aim = np.array([3.0 * forward[shot, 0], 4.0, 3.0 * forward[shot, 1]])
        ball[flight] = ball[shot - 1] + aim * seconds + np.array([0, -4.9, 0]) * seconds**2
    return bounded(ball, BASKETBALL_RADIUS), shown


def rolling_ball(joints: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """A football (T, 3) on the floor just ahead of the leading foot."""
    hip = joints[:, _HIP][:, [0, 2]]
    toes = joints[:, [_L_TOE, _R_TOE]][:, :, [0, 2]] - hip[:, None]
    side = np.stack([forward[:, 1], -forward[:, 0]], -1)
    ahead, aside = (toes * forward[:, None]).sum(-1), (toes * side[:, None]).sum(-1)
    weight = np.exp((ahead - ahead.max(1, keepdims=True)) / 0.1)
    weight /= weight.sum(1, keepdims=True)
    reach = gaussian_filter1d(ahead.max(1).clip(0.1, 0.7), 2.0, mode="nearest") + 0.22
    lateral = gaussian_filter1d((aside * weight).sum(1), 3.0, mode="nearest")
    place = hip + reach[:, None] * forward + lateral[:, None] * side
    ball = np.stack([place[:, 0], np.full(len(hip), FOOTBALL_RADIUS), place[:, 1]], -1)
    return bounded(ball, FOOTBALL_RADIUS)


def bounded(ball: np.ndarray, radius: float) -> np.ndarray:
    """The same path, never through the floor and never further than `MAX_BALL_STEP` a frame."""
    ball = ball.copy()
    ball[:, 1] = ball[:, 1].clip(radius)
    for t in range(1, len(ball)):
        step = ball[t] - ball[t - 1]
        length = float(np.linalg.norm(step))
        if length > MAX_BALL_STEP:
            ball[t] = ball[t - 1] + step * (MAX_BALL_STEP / length)
    return ball


def _dribbling_hand(joints: np.ndarray) -> np.ndarray:
    """Path (T, 3) of the hand with more vertical swing; a change of hand is blended over a few frames."""
    hands = joints[:, [_L_HAND, _R_HAND]]
    swing = hands[..., 1] - uniform_filter1d(hands[..., 1], FPS, axis=0, mode="nearest")
    energy = gaussian_filter1d(np.square(swing), FPS / 3, axis=0, mode="nearest") + 1e-5
    active = np.zeros(len(hands))
    active[0] = float(energy[0, 1] >= energy[0, 0])
    for t in range(1, len(hands)):
        now = int(active[t - 1])
        active[t] = 1 - now if energy[t, 1 - now] > 1.6 * energy[t, now] else now
    right = gaussian_filter1d(active, 1.5, mode="nearest")[:, None]
    return right * hands[:, 1] + (1 - right) * hands[:, 0]


def _tops(height: np.ndarray) -> np.ndarray:
    """Times (frames) at which the hand is highest, past both ends; gaps are filled at about `DRIBBLE_HZ`."""
    usual = FPS / DRIBBLE_HZ
    smooth = gaussian_filter1d(height - uniform_filter1d(height, FPS, mode="nearest"), 0.7, mode="nearest")
    peaks, _ = find_peaks(smooth, distance=5, prominence=0.03)
    found = [float(p) for p in peaks] or [len(height) / 2]
    tops = [found[0]]
    for peak in found[1:]:
        pieces = max(1, round((peak - tops[-1]) / usual)) if peak - tops[-1] > FPS else 1
        tops += list(np.linspace(tops[-1], peak, pieces + 1)[1:])
    while tops[0] > 0:
        tops.insert(0, tops[0] - usual)
    while tops[-1] < len(height):
        tops.append(tops[-1] + usual)
    return np.array(tops)
