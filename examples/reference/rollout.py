"""How a motion stage runs free: 1,000 steps of every action, and changes of caption while it runs.

    python -m examples.reference.rollout --data DIR --weights motion.pt -o motion.json --sheet motion.png

Everything is measured on what a user gets: random styles, the stored start pose, jitter at every step, and conditions
that blend over six steps. A small recurrent reader says which action a window of 32 steps (two seconds) shows. It is
trained on the real clips' joints alone, without props.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.reference.model import BLEND_STEPS, motion_options
from examples.reference.motion_data import Clip, features, load_clips
from examples.reference.motion_graph import MotionGraph
from examples.reference.training import load_state
from examples.reference.vocabulary import ACTIONS, CONDITION_SIZE, FPS, JOINTS, MOTION_SIZE, PARENTS
from t2v_edge.util.files import atomic_file, write_atomic
from t2v_edge.util.targets import SCRIPT_FILE
from t2v_export.models.skeletal import PRESENCE, PROP, SPIN, SkeletalMotion, travel, turn

WINDOW = 32
FROZEN, EXPLODED = 0.3, 2.5
_TOES = [JOINTS.index("l_toe"), JOINTS.index("r_toe")]


@dataclass(frozen=True)
class Rollout:
    """Streams played by a motion stage: `poses` (n, T, 74) in metres, `motions` (n, T, 75), `actions` (n, T)."""

    poses: Tensor
    motions: Tensor
    actions: Tensor


def conditions_of(actions: Tensor, steps: int = BLEND_STEPS) -> Tensor:
    """Action probabilities (n, T, 12) of labels (n, T): a change blends linearly over `steps`, as in the runtime."""
    hot = functional.one_hot(actions, len(ACTIONS)).float()
    padded = torch.cat([hot[:, :1].expand(-1, steps - 1, -1), hot], 1)
    return padded.unfold(1, steps, 1).mean(-1)


@torch.no_grad()
def play(module: SkeletalMotion, actions: Tensor, generator: torch.Generator | None = None) -> Rollout:
    """Run a stream for each row of `actions` (n, T) from the stored start; `generator` is on the module's device."""
    device = module.mean.device
    n, steps = actions.shape
    spec = module.spec

    def drawn(shape: tuple[int, ...], distribution: str, scale: float) -> Tensor:
        draw = torch.randn if distribution == "normal" else torch.rand
        return scale * draw(n, *shape[1:], generator=generator, device=device)

    kept = [drawn(s.shape, s.distribution, s.scale) if s.cadence == "stream" else None for s in spec.noises]
    states = [
        torch.tensor(s.value, device=device).expand(n, -1) if s.value else torch.zeros(n, *s.shape[1:], device=device)
        for s in spec.states
    ]
    at = [s.name for s in spec.states].index("pose")
    condition = torch.zeros(n, module.condition_size, device=device)
    probabilities = conditions_of(actions.to(device))
    poses, motions = [], []
    for t in range(steps):
        condition[:, : module.action_size] = probabilities[:, t]
        noises = [drawn(s.shape, s.distribution, s.scale) if k is None else k for s, k in zip(spec.noises, kept)]
        motion, *states = module(condition, *noises, *states)
        motions.append(motion)
        poses.append(states[at] * module.deviation + module.mean)
    return Rollout(torch.stack(poses, 1), torch.stack(motions, 1), actions.to(device))


def world_joints(poses: Tensor) -> Tensor:
    """Joints (n, T, 20, 3) in the world, metres, of poses (n, T, 74)."""
    facing = poses[..., SPIN].cumsum(1)
    cosine, sine = torch.cos(facing), torch.sin(facing)
    joints = turn(poses[..., :60].unflatten(-1, (20, 3)), cosine, sine)
    place = travel(poses, cosine, sine).cumsum(1)
    return joints + torch.stack([place[..., 0], torch.zeros_like(place[..., 0]), place[..., 1]], -1)[..., None, :]


def joint_speed(poses: Tensor) -> Tensor:
    """Speed of every joint (n, T - 1, 20) in the world, metres a second."""
    return world_joints(poses).diff(dim=1).norm(dim=-1) * FPS


def limb_speed(poses: Tensor) -> Tensor:
    """Speed of every joint (n, T - 1, 20) relative to the hip, in the heading's frame: 0 for a statue that slides."""
    return poses[..., :60].unflatten(-1, (20, 3)).diff(dim=1).norm(dim=-1) * FPS


def bone_error(poses: Tensor, lengths: Tensor) -> Tensor:
    """Largest relative error (n,) of any bone of a stream against `lengths` (20,) metres."""
    joints = poses[..., :60].unflatten(-1, (20, 3))
    bones = (joints - joints[..., [max(p, 0) for p in PARENTS], :]).norm(dim=-1)[..., 1:]
    return ((bones - lengths[1:]) / lengths[1:]).abs().amax((1, 2))


def foot_slide(poses: Tensor) -> float:
    """Mean horizontal speed of toes that touch the floor (below 6 cm), metres a second."""
    toes = world_joints(poses)[:, :, _TOES]
    speed = toes[..., [0, 2]].diff(dim=1).norm(dim=-1) * FPS
    down = (toes[:, 1:, :, 1] < 0.06).float()
    return float((speed * down).sum() / down.sum().clamp(min=1))


def data_speeds(clips: list[Clip]) -> Tensor:
    """Mean `joint_speed` and `limb_speed` (12, 2) of each action's clips, metres a second.

    It is 0 for an action without clips.
    """
    speeds = torch.zeros(len(ACTIONS), 2)
    for index, action in enumerate(ACTIONS):
        poses = [torch.from_numpy(features(c))[None] for c in clips if c.action == action]
        for column, measure in enumerate((joint_speed, limb_speed) if poses else ()):
            speeds[index, column] = torch.cat([measure(p)[0] for p in poses]).mean()
    return speeds


class ActionReader(nn.Module):
    """Reads the action from windows (n, 32, 63) of normal poses: joints, steps and spin, never the props."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.cells = nn.GRU(PROP.start, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(4 * width, len(ACTIONS))

    def forward(self, poses: Tensor) -> Tensor:
        seen, _ = self.cells(poses[..., : PROP.start])
        return self.head(torch.cat([seen.mean(1), seen.amax(1)], 1))


def train_reader(
    module: SkeletalMotion, clips: list[Clip], steps: int = 400, sequences: int = 480, seed: int = 7
) -> ActionReader:
    """A reader trained on windows of one action from the clips' motion graph, in the units of `module`."""
    device = module.mean.device
    data = MotionGraph(clips).sequences(sequences, 320, switch=1 / 80, seed=seed)
    poses, actions = module.normal(torch.from_numpy(data.poses).to(device)), torch.from_numpy(data.actions).to(device)
    pure = (actions.unfold(1, WINDOW, 1) == actions[:, : 320 - WINDOW + 1, None]).all(-1)
    rows, starts = torch.nonzero(pure, as_tuple=True)
    torch.manual_seed(seed)
    reader = ActionReader().to(device)
    optimizer = torch.optim.Adam(reader.parameters(), 2e-3)
    span = torch.arange(WINDOW, device=device)
    for _ in range(steps):
        pick = torch.randint(len(rows), (96,), device=device)
        window = poses[rows[pick, None], starts[pick, None] + span]
        logits = reader(window + 0.1 * torch.randn_like(window))
        loss = functional.cross_entropy(logits, actions[rows[pick], starts[pick]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return reader.eval()


@torch.no_grad()
def read(reader: ActionReader, module: SkeletalMotion, poses: Tensor) -> Tensor:
    """The action read from each whole window of 32 steps of poses (n, T, 74): (n, T // 32)."""
    windows = module.normal(poses)[:, : poses.shape[1] // WINDOW * WINDOW].unflatten(1, (-1, WINDOW))
    flat = windows.flatten(0, 1)
    return torch.cat([reader(part).argmax(1) for part in flat.split(1024)]).view(windows.shape[:2])


def free_run(
    module: SkeletalMotion, reader: ActionReader, speeds: Tensor, *, streams: int = 8, steps: int = 1000, seed: int = 0
) -> tuple[dict[str, Any], Rollout]:
    """Every action for `steps` on `streams` styles: speed against the data's, frozen, exploded, bones, slide, reading.

    A stream is frozen if in its second half the joints, or the limbs relative to the hip, move at less than 0.3 of the
    data's mean speed. It is exploded if they move at more than 2.5 times that speed, or are not finite. `speeds` is
    `data_speeds`. Returns the figures and the rollout.
    """
    device = module.mean.device
    generator = torch.Generator(device).manual_seed(seed)
    actions = torch.arange(len(ACTIONS), device=device).repeat_interleave(streams)[:, None].expand(-1, steps)
    rollout = play(module, actions, generator)
    speed = torch.stack([joint_speed(rollout.poses).mean(-1), limb_speed(rollout.poses).mean(-1)], -1)
    usual = speeds.to(device)[actions[:, 0]].clamp(min=1e-3)
    ratio, late = speed.mean(1) / usual, speed[:, steps // 2 :].mean(1) / usual
    frozen, exploded = (late < FROZEN).any(1), (~torch.isfinite(ratio) | (late > EXPLODED)).any(1)
    right = (read(reader, module, rollout.poses) == actions[:, :1]).float().mean(1)
    rows = {}
    for index, action in enumerate(ACTIONS):
        mine = actions[:, 0] == index
        rows[action] = {
            "speed_ratio": ratio[mine, 0].mean().item(),
            "limb_speed_ratio": ratio[mine, 1].mean().item(),
            "late_speed_ratio": late[mine, 0].mean().item(),
            "frozen": frozen[mine].float().mean().item(),
            "exploded": exploded[mine].float().mean().item(),
            "read": right[mine].mean().item(),
            "foot_slide_m_s": foot_slide(rollout.poses[mine]),
        }
    ratios = [row["speed_ratio"] for row in rows.values()]
    return {
        "steps": steps,
        "streams_per_action": streams,
        "speed_ratio_min": min(ratios),
        "speed_ratio_max": max(ratios),
        "frozen_or_exploded": (frozen | exploded).float().mean().item(),
        "bone_error": bone_error(rollout.poses, module.bones).max().item(),
        "read": right.mean().item(),
        "actions": rows,
    }, rollout


def switch_run(
    module: SkeletalMotion,
    reader: ActionReader,
    *,
    streams: int = 96,
    stay: int = 160,
    switches: int = 4,
    seed: int = 1,
) -> dict[str, float]:
    """Random changes of action every `stay` steps: what is read at 0, 8 and 16 steps after, and whether joints jump.

    `jump` is the peak joint speed within a second of the change, over the peak of a second elsewhere. That second is of
    the action before for about half of it, and of the one after for the other half.
    """
    device = module.mean.device
    generator = torch.Generator(device).manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(len(ACTIONS), (streams, 1), generator=draw)
    moves = torch.randint(1, len(ACTIONS), (streams, switches), generator=draw)
    labels = torch.cat([first, first + moves.cumsum(1)], 1) % len(ACTIONS)
    rollout = play(module, labels.repeat_interleave(stay, 1), generator)
    peak = joint_speed(rollout.poses).amax(-1)
    figures = {}
    changes = [k * stay for k in range(1, switches + 1)]
    for delay in (0, 8, 16):
        seen = [read(reader, module, rollout.poses[:, c + delay : c + delay + WINDOW])[:, 0] for c in changes]
        wanted = [rollout.actions[:, c] for c in changes]
        figures[f"read_after_{delay}"] = (torch.stack(seen) == torch.stack(wanted)).float().mean().item()
    at_change = torch.stack([peak[:, c - 1 : c + 15].amax(1) for c in changes]).mean()
    around = [peak[:, c + o : c + o + 16].amax(1) for c in changes for o in (-48, 48)]
    figures["jump"] = (at_change / torch.stack(around).mean()).item()
    return figures


def save_figures(poses: Tensor, actions: Tensor, path: Path, columns: int = 16, every: int = 4) -> None:
    """Save a sheet of stick figures of poses (n, T, 74), one row a stream, `every` so many steps; atomic."""
    joints = poses[..., :60].unflatten(-1, (20, 3)).cpu().numpy()
    prop, presence = poses[..., PROP].unflatten(-1, (2, 3)).cpu().numpy(), poses[..., PRESENCE].cpu().numpy()
    rows = []
    for stream in range(len(poses)):
        row = np.full((150, 90 * columns, 3), 255, np.uint8)
        for column in range(columns):

            def spot(point: np.ndarray, column: int = column) -> tuple[int, int]:
                return int(45 + 90 * column + 58 * (0.6 * point[0] + 0.8 * point[2])), int(135 - 62 * point[1])

            t = min(column * every, joints.shape[1] - 1)
            for joint, parent in enumerate(PARENTS[1:], 1):
                colour = (0, 0, 200) if JOINTS[joint].startswith("r_") else (70, 70, 70)
                cv2.line(row, spot(joints[stream, t, joint]), spot(joints[stream, t, parent]), colour, 2, cv2.LINE_AA)
            if presence[stream, t].max() > 0.3:
                cv2.line(row, spot(prop[stream, t, 0]), spot(prop[stream, t, 1]), (0, 150, 0), 2, cv2.LINE_AA)
                cv2.circle(row, spot(prop[stream, t, 0]), 7, (0, 140, 255), 2, cv2.LINE_AA)
        name = ACTIONS[int(actions[stream, 0])]
        cv2.putText(row, name, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        rows.append(row)
    with atomic_file(path, SCRIPT_FILE) as temporary:
        cv2.imwrite(str(temporary), np.concatenate(rows))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with motions.npz and index.csv")
    parser.add_argument("--weights", required=True, help="the motion stage's state, as train_motion writes it")
    parser.add_argument("--streams", type=int, default=16, help="streams an action")
    parser.add_argument("--steps", type=int, default=1000, help="steps a stream")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--sheet", type=Path, help="PNG of stick figures, one row an action")
    parser.add_argument("-o", "--out", type=Path, help="JSON of the figures")
    args = parser.parse_args(arguments)
    state = {name: value.float() for name, value in load_state(Path(args.weights)).items()}
    module = SkeletalMotion(
        condition_size=CONDITION_SIZE, motion_size=MOTION_SIZE, **motion_options(hidden=state["leave.weight"].shape[1])
    )
    module.load_state_dict(state)
    module.eval().to(args.device)
    clips = MotionGraph([c for c in load_clips(args.data, mirrored=True) if c.split == "train"]).clips
    reader = train_reader(module, clips)
    figures, rollout = free_run(module, reader, data_speeds(clips), streams=args.streams, steps=args.steps)
    figures["switches"] = switch_run(module, reader)
    if args.sheet:
        save_figures(rollout.poses[:: args.streams, args.steps // 2 :], rollout.actions[:: args.streams], args.sheet)
    if args.out:
        write_atomic(args.out, json.dumps(figures, indent=1).encode(), SCRIPT_FILE)
    print(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
