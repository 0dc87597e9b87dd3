"""Free-running motion and caption switches, measured on the motion graph that a bundle ships.

The figures are those of `rollout.py`. They are taken from motion vectors alone, as any user of a bundle could take
them. A stream is frozen if, in the second half of a run, its joints move at less than 0.3 of the data's mean speed.
That is measured in the world, and relative to the hip, for a statue that slides. It is exploded above 2.5 of that
speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from examples.reference.measures import markdown_table, percent
from examples.reference.play import Job, Studio, Take, read_jobs
from examples.reference.vocabulary import ACTIONS, FLOOR_SLICE, FPS, HIP_HEIGHT, JOINT_SCALE, JOINT_SLICE, PARENTS
from t2v_export.evaluate.readings import proportion

FROZEN, EXPLODED = 0.3, 2.5
STAY_S, AFTER_S = 4, 1
JUMP_S = 1.0


def world_joints(motion: np.ndarray) -> np.ndarray:
    """Joints (T, 20, 3) in metres, floor at 0, of motion vectors (T, 75); the start's place is lost modulo 2 m.

    The floor phase is sin and cos of pi times the hip's place: its change, wrapped, is the hip's step (below 1 m).
    """
    joints = motion[:, JOINT_SLICE].astype(np.float64).reshape(-1, 20, 3) / JOINT_SCALE + [0, HIP_HEIGHT, 0]
    sines, cosines = np.split(motion[:, FLOOR_SLICE].astype(np.float64), 2, 1)
    place = np.unwrap(np.arctan2(sines, cosines), axis=0) / np.pi
    joints[..., 0] += place[:, :1]
    joints[..., 2] += place[:, 1:]
    return joints


def joint_speed(motion: np.ndarray) -> np.ndarray:
    """Speed of every joint (T - 1, 20) in the world, metres a second."""
    return np.linalg.norm(np.diff(world_joints(motion), axis=0), axis=-1) * FPS


def limb_speed(motion: np.ndarray) -> np.ndarray:
    """Speed of every joint (T - 1, 20) relative to the hip, metres a second: small for a statue that slides."""
    joints = motion[:, JOINT_SLICE].astype(np.float64).reshape(-1, 20, 3) / JOINT_SCALE
    return np.linalg.norm(np.diff(joints, axis=0), axis=-1) * FPS


def bone_lengths(motion: np.ndarray) -> np.ndarray:
    """Length of every bone (T, 19) in metres, joint 1 on."""
    joints = world_joints(motion)
    return np.linalg.norm(joints[:, 1:] - joints[:, list(PARENTS[1:])], axis=-1)


def data_motion(data: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mean joint and limb speed (2,) of each action's training clips, m/s; bone lengths (19,), metres. Needs torch."""
    from examples.reference.motion_data import features, load_clips, to_motion_vectors

    speeds: dict[str, list[np.ndarray]] = {}
    bones = None
    for clip in load_clips(data):
        if clip.split == "train":
            motion = to_motion_vectors(features(clip)[None])[0].numpy()
            speeds.setdefault(clip.action, []).append(mean_speeds(motion))
            bones = bone_lengths(motion).mean(0) if bones is None else bones
    if bones is None:
        raise ValueError(f"{data} holds no training clips")
    return {action: np.concatenate(parts).mean(0) for action, parts in speeds.items()}, bones


def mean_speeds(motion: np.ndarray) -> np.ndarray:
    """Joint and limb speed (T - 1, 2), each the mean over the joints."""
    return np.stack([joint_speed(motion).mean(1), limb_speed(motion).mean(1)], 1)


def caption_of(action: str) -> str:
    return f"a person is {action}"


def measure_run(motion: np.ndarray, speeds: np.ndarray, bones: np.ndarray) -> dict[str, float]:
    """One free run against the data: speed ratios, and the largest relative error of any bone at any time.

    `late` is the least ratio of joints and limbs in the second half, `most` the largest.
    """
    if not np.isfinite(motion).all():
        return {"ratio": float("inf"), "late": float("inf"), "most": float("inf"), "bones": float("inf")}
    moved = mean_speeds(motion) / speeds
    late = moved[len(moved) // 2 :].mean(0)
    error = np.abs(bone_lengths(motion) / bones - 1)
    return {
        "ratio": float(moved[:, 0].mean()),
        "late": float(late.min()),
        "most": float(late.max()),
        "bones": float(error.max()),
    }


def measure_rollouts(studio: Studio, steps: int, streams: int, seed: int, data: Path, quiet: bool) -> dict[str, Any]:
    """`streams` free runs of `steps` base steps of every action through the bundle's motion graph."""
    speeds, bones = data_motion(data)
    actions: dict[str, Any] = {}
    stuck = 0
    for number, action in enumerate(tqdm([a for a in ACTIONS if a in speeds], "rollouts", disable=quiet)):
        runs = [
            measure_run(
                studio.take([(0, caption_of(action))], seed + number * streams + k, steps).motion, speeds[action], bones
            )
            for k in range(streams)
        ]
        frozen, exploded = (sum(r["late"] < FROZEN for r in runs), sum(not r["most"] <= EXPLODED for r in runs))
        stuck += frozen + exploded
        actions[action] = {
            "speed_ratio": round(float(np.mean([r["ratio"] for r in runs])), 4),
            "frozen": frozen,
            "exploded": exploded,
            "bone_error": round(max(r["bones"] for r in runs), 5),
            "data_speed_m_s": round(float(speeds[action][0]), 4),
        }
    return {
        "engine": "onnxruntime",
        "steps": steps,
        "streams_per_action": streams,
        "frozen_or_exploded": proportion(stuck, streams * len(actions)),
        "actions": actions,
    }


def jump(take: Take, change: int) -> float:
    """Peak joint speed within a second of step `change`, over the mean peak of the seconds elsewhere."""
    peak = joint_speed(take.motion).max(1)
    span = int(JUMP_S * FPS)
    at = peak[change - 1 : change - 1 + span].max()
    starts = [s for s in range(span, len(peak) - span + 1, span) if s + span <= change - 1 or s >= change - 1 + span]
    elsewhere = np.mean([peak[s : s + span].max() for s in starts])
    return float(at / max(elsewhere, 1e-6))


def measure_switches(studio: Studio, seed: int, processes: int, quiet: bool) -> dict[str, Any]:
    """Every ordered pair of actions: does the evaluator read the new one from a second after, and do joints jump?"""
    change = STAY_S * studio.fps
    pairs = [(a, b) for a in ACTIONS for b in ACTIONS if a != b]
    jobs = [
        Job(((0, caption_of(a)), (change, caption_of(b))), seed + i, STAY_S + AFTER_S) for i, (a, b) in enumerate(pairs)
    ]
    read = list(tqdm(read_jobs(studio, jobs, processes), "switches", len(jobs), disable=quiet))
    labels = studio.describe()["slots"]["action"]
    right = [labels[found[0]] == b for found, (_, b) in zip(read, pairs)]
    jumps = [jump(studio.take(job.script, job.seed, 2 * change), change) for job in jobs]
    return {
        "pairs": len(pairs),
        "read": proportion(sum(right), len(right)),
        "window_starts_s_after": AFTER_S,
        "jump_mean": round(float(np.mean(jumps)), 4),
        "jump_p95": round(float(np.quantile(jumps, 0.95)), 4),
        "missed": [f"{a} -> {b}: read {labels[found[0]]}" for ok, (a, b), found in zip(right, pairs, read) if not ok],
    }


def rollout_tables(report: dict[str, Any]) -> str:
    """Markdown of `measure_rollouts` and `measure_switches`."""
    rolled, switched = report["rollouts"], report["switches"]
    rows = [
        [name, f"{row['speed_ratio']:.2f}", str(row["frozen"]), str(row["exploded"]), f"{100 * row['bone_error']:.2f}"]
        for name, row in rolled["actions"].items()
    ]
    head = ("action", "joint speed / data's", "frozen", "exploded", "largest bone error, %")
    return "\n".join(
        [
            f"{rolled['steps']:,} free-running steps of the bundle's motion graph, {rolled['streams_per_action']} "
            f"streams of each action; frozen or exploded: {percent(rolled['frozen_or_exploded'])} %.",
            "",
            markdown_table(head, rows),
            "",
            f"Caption switches, all {switched['pairs']} ordered pairs of actions: the new action is read from a window "
            f"that starts {switched['window_starts_s_after']} s after the switch in {percent(switched['read'])} %; the "
            f"peak joint speed around the switch is {switched['jump_mean']:.2f} of that elsewhere (95th percentile "
            f"{switched['jump_p95']:.2f}).",
        ]
    )
