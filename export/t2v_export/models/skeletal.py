"""The reference model's motion stage: a recurrent cell that draws its next pose from its last one.

A **pose** is 74 numbers at the base frame rate, in the frame of the person's heading (+z forward, +x the person's
left, y up, origin on the floor under the hip):

    0:60    20 joints (x, y, z), metres
    60:62   the hip's step along x and z since the last frame, metres
    62      the heading's change since the last frame, radians
    63:69   the prop's two ends (x, y, z), metres
    69:74   presence, 0 to 1, of each of five props

The output is a motion vector of 75 numbers seen from the camera: see `to_camera`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec
from t2v_export.models.contract import motion_spec
from t2v_export.models.recurrent import CELLS, make_cell, run_cells

PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 9, 12, 13, 9, 15, 16, 14, 17)
POSE_SIZE = 74
MOTION_SIZE = 75
JOINTS, STEP, SPIN, PROP, PRESENCE = slice(0, 60), slice(60, 62), slice(62, 63), slice(63, 69), slice(69, 74)
PLACE_PERIOD = 2.0
"""Metres after which the floor repeats: the hip's place is kept modulo this, so that it never loses precision."""

STYLE_SHARPNESS = 30.0
"""How decidedly a style chooses: logits are this times its products with the codes."""

_HIP_HEIGHT = 0.9
_SCALE = 2.0


def _joint_matrices() -> tuple[Tensor, Tensor]:
    """Two (60, 60) matrices for row vectors of joints: to each joint's offset from its parent, and back."""
    count = len(PARENTS)
    to_bones, to_joints = torch.eye(count), torch.zeros(count, count)
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            to_bones[joint, parent] = -1.0
        at = joint
        while at >= 0:
            to_joints[joint, at] = 1.0
            at = PARENTS[at]
    axes = torch.eye(3)
    return torch.kron(to_bones, axes).T.contiguous(), torch.kron(to_joints, axes).T.contiguous()


def project_bones(joints: Tensor, lengths: Tensor, matrices: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Give every bone its length, keeping its direction and the hip's place; (..., 20, 3) -> (..., 20, 3), metres.

    `lengths` is (20,): the distance of each joint to its parent; the hip's is unused.
    """
    to_bones, to_joints = matrices or tuple(m.to(joints) for m in _joint_matrices())
    bones = torch.matmul(joints.flatten(-2), to_bones).unflatten(-1, (20, 3))
    unit = bones / (bones.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    kept = torch.cat([bones[..., :1, :], (unit * lengths.unsqueeze(-1))[..., 1:, :]], -2)
    placed: Tensor = torch.matmul(kept.flatten(-2), to_joints).unflatten(-1, (20, 3))
    return placed


def turn(points: Tensor, cosine: Tensor, sine: Tensor, down: float = 0.0) -> Tensor:
    """Points (..., k, 3) turned about the vertical and lowered by `down`.

    The angle is given as its cosine and sine, each (..., 1).
    """
    x, y, z = points[..., 0], points[..., 1] - down, points[..., 2]
    return torch.stack([cosine * x + sine * z, y, cosine * z - sine * x], -1)


def travel(pose: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The hip's step (..., 2) in x and z, metres, of poses (..., 74) facing a cosine and sine (..., 1)."""
    x, z = pose[..., STEP].split(1, -1)
    return torch.cat([cosine * x + sine * z, cosine * z - sine * x], -1)


def _rotate(direction: Tensor, angle: Tensor) -> Tensor:
    """A direction (n, 2), cosine and sine, turned further by an angle (n, 1) in radians."""
    cosine, sine = direction[:, :1], direction[:, 1:]
    return torch.cat(
        [cosine * torch.cos(angle) - sine * torch.sin(angle), sine * torch.cos(angle) + cosine * torch.sin(angle)], 1
    )


def to_camera(pose: Tensor, cosine: Tensor, sine: Tensor, place: Tensor) -> Tensor:
    """Motion vectors (..., 75) of poses (..., 74) facing a cosine and sine (..., 1) at `place` (..., 2), metres.

    They hold joints (x, y - 0.9, z) times 2; the floor phase sin(pi x), sin(pi z), cos(pi x), cos(pi z) of the place;
    the prop's ends like joints; presence. The angle is heading plus camera yaw. The place is already turned by the yaw.
    """
    points = torch.cat([pose[..., JOINTS], pose[..., PROP]], -1).unflatten(-1, (22, 3))
    flat = (turn(points, cosine, sine, _HIP_HEIGHT) * _SCALE).flatten(-2)
    angle = place * torch.pi
    floor = torch.cat([torch.sin(angle), torch.cos(angle)], -1)
    return torch.cat([flat[..., :60], floor, flat[..., 60:], pose[..., PRESENCE]], -1)


class SkeletalMotion(nn.Module):
    """One step of the reference model's motion: condition, style, view, jitter and states in, motion out.

    ``noise.style`` (1, style_size), drawn once a stream, chooses one of `choices` variants of each action: the one
    whose stored code is nearest in direction, by a softmax. ``noise.view`` (1, 1) in 0..1 is the camera's yaw in turns.
    ``noise.jitter`` (1, 74), drawn at every step, is added to the last pose and keeps quiet actions alive (MoCoGAN's
    motion noise; Tulyakov et al., CVPR 2018).

    States: the cell's; ``pose`` (1, 74), the last output in normal units; ``place`` (1, 2) of the hip in metres, modulo
    the floor's period; ``heading`` (1, 2) as cosine and sine. Bones keep their lengths exactly and no joint lies under
    the floor, in the output and in what is fed back.

    Only the first `action_size` numbers of the condition are read. Raises ValueError for a `motion_size` other than 75.
    """

    mean: Tensor
    deviation: Tensor
    bones: Tensor
    neutral: Tensor
    codes: Tensor
    unused: Tensor
    to_bones: Tensor
    to_joints: Tensor

    def __init__(
        self,
        *,
        condition_size: int,
        motion_size: int,
        cell: str = "gru",
        hidden: int = 512,
        layers: int = 1,
        style_size: int = 8,
        action_size: int = 12,
        choices: int = 12,
        embedding: int = 48,
        jitter: float = 0.1,
        **_: Any,
    ) -> None:
        super().__init__()
        if motion_size != MOTION_SIZE:
            raise ValueError(f"skeletal motion makes vectors of {MOTION_SIZE}, not {motion_size}")
        if not 1 <= action_size <= condition_size:
            raise ValueError(f"action_size must be 1 to condition_size ({condition_size}), not {action_size}")
        if layers < 1:
            raise ValueError(f"layers must be 1 or more, not {layers}")
        self.condition_size, self.hidden, self.style_size = condition_size, hidden, style_size
        self.action_size, self.choices, self.jitter = action_size, choices, jitter
        self.embed = nn.Linear(action_size * choices, embedding)
        self.enter = nn.Linear(POSE_SIZE + embedding, hidden)
        self.cells = nn.ModuleList([make_cell(cell, hidden, hidden) for _ in range(layers)])
        self.states = CELLS[cell].states
        self.leave = nn.Linear(hidden, POSE_SIZE)
        self.register_buffer("mean", torch.zeros(POSE_SIZE))
        self.register_buffer("deviation", torch.ones(POSE_SIZE))
        self.register_buffer("bones", torch.full((len(PARENTS),), 0.25))
        self.register_buffer("neutral", torch.zeros(POSE_SIZE))
        self.register_buffer("codes", nn.functional.normalize(torch.randn(action_size * choices, style_size), dim=1))
        self.register_buffer("unused", torch.zeros(action_size * choices))
        for name, matrix in zip(("to_bones", "to_joints"), _joint_matrices()):
            self.register_buffer(name, matrix, persistent=False)

    def set_statistics(self, mean: Tensor, deviation: Tensor, bones: Tensor, neutral: Tensor) -> None:
        """Store `mean`, `deviation` (74,), `bones` (20,) in metres and `neutral` (74,), the first pose, of the data."""
        for name, value in (("mean", mean), ("deviation", deviation), ("bones", bones), ("neutral", neutral)):
            getattr(self, name).copy_(value)

    def set_styles(self, codes: Tensor, unused: Tensor) -> None:
        """Store the codes (action_size, choices, style_size) and which are `unused`, boolean (action_size, choices)."""
        self.codes.copy_(codes.flatten(0, 1))
        self.unused.copy_(unused.flatten().to(self.unused) * -100.0)

    def choose(self, action: Tensor, style: Tensor) -> Tensor:
        """Weights (n, action_size * choices) of the variants: an action's probability goes to its chosen variant."""
        logits = STYLE_SHARPNESS * torch.matmul(style, self.codes.T) + self.unused
        ways = torch.softmax(logits.unflatten(1, (self.action_size, self.choices)), -1)
        return (ways * action.unsqueeze(-1)).flatten(1)

    @property
    def spec(self) -> StageSpec:
        """The stage's contract; the start pose is the neutral one in normal units."""
        start = tuple(((self.neutral - self.mean) / self.deviation).tolist())
        noises = (
            NoiseSpec("style", (1, self.style_size)),
            NoiseSpec("view", (1, 1), "uniform"),
            NoiseSpec("jitter", (1, POSE_SIZE), cadence="step", scale=self.jitter),
        )
        states = (
            *(StateSpec(name, (1, self.hidden)) for name in self.cell_states()),
            StateSpec("pose", (1, POSE_SIZE), "stored", start),
            StateSpec("place", (1, 2)),
            StateSpec("heading", (1, 2), "stored", (1.0, 0.0)),
        )
        return motion_spec(self.condition_size, MOTION_SIZE, noises, states)

    def cell_states(self) -> tuple[str, ...]:
        """Names of the cells' states, in order."""
        letters = ("h", "c")[: self.states]
        if len(self.cells) == 1:
            return letters
        return tuple(f"{letter}{layer}" for layer in range(len(self.cells)) for letter in letters)

    def advance(
        self, pose: Tensor, action: Tensor, style: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next pose (n, 74) in metres, bones at their lengths, not yet `settle`d; and the cells' states.

        `pose` is the last one in normal units. In training the cells run fused, elsewhere as plain operators.
        """
        x = functional.relu(self.enter(torch.cat([pose, self.embed(self.choose(action, style))], 1)))
        x, following = run_cells(self.cells, x, states, fused=self.training)
        plain = self.leave(x) * self.deviation + self.mean
        joints = project_bones(plain[:, JOINTS].unflatten(1, (20, 3)), self.bones, (self.to_bones, self.to_joints))
        return torch.cat([joints.flatten(1), plain[:, STEP.start :]], 1), tuple(following)

    def settle(self, plain: Tensor) -> Tensor:
        """The same pose (n, 74), metres, with presence in 0..1 and the body lifted where a joint is under the floor."""
        x, y, z = plain[:, JOINTS].unflatten(1, (20, 3)).unbind(-1)
        lifted = torch.stack([x, y + functional.relu(-y.amin(1, keepdim=True)), z], -1).flatten(1)
        return torch.cat([lifted, plain[:, STEP.start : PROP.stop], plain[:, PRESENCE].clamp(0.0, 1.0)], 1)

    def normal(self, plain: Tensor) -> Tensor:
        """A pose (..., 74) in metres, in the normal units of the network."""
        return (plain - self.mean) / self.deviation

    def forward(
        self, condition: Tensor, style: Tensor, view: Tensor, jitter: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """One base frame; inputs and outputs in the order of `spec`, any batch size."""
        *cells, pose, place, heading = states
        plain, following = self.advance(pose + jitter, condition[:, : self.action_size], style, tuple(cells))
        plain = self.settle(plain)
        turned = _rotate(heading, plain[:, SPIN])
        turned = turned / (turned.square().sum(1, keepdim=True) + 1e-12).sqrt()
        facing = _rotate(turned, view * (2 * torch.pi))
        moved = place + travel(plain, facing[:, :1], facing[:, 1:])
        moved = moved - PLACE_PERIOD * torch.floor(moved / PLACE_PERIOD)
        motion = to_camera(plain, facing[:, :1], facing[:, 1:], moved)
        return (motion, *following, self.normal(plain), moved, turned)
