from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from t2v_export.models import skeletal
from t2v_export.models.skeletal import PARENTS, PLACE_PERIOD, POSE_SIZE, SkeletalMotion


def standing() -> torch.Tensor:
    joints = torch.zeros(20, 3)
    for joint, parent in enumerate(PARENTS):
        up = -0.2 if joint < 9 else 0.2
        joints[joint] = torch.tensor([0.0, 0.9, 0.0]) if parent < 0 else joints[parent] + torch.tensor([0.05, up, 0.0])
    return joints


def make(**options: object) -> SkeletalMotion:
    torch.manual_seed(0)
    module = SkeletalMotion(condition_size=41, motion_size=75, **{"hidden": 24, **options}).eval()
    neutral = torch.zeros(POSE_SIZE)
    neutral[:60] = standing().flatten()
    bones = torch.rand(20) * 0.3 + 0.1
    module.set_statistics(neutral, torch.full((POSE_SIZE,), 0.3), bones, neutral)
    return module


def inputs_of(module: SkeletalMotion, n: int = 1, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    condition = torch.softmax(torch.randn(n, 41, generator=generator), 1)
    noises = [s.scale * torch.randn(n, *s.shape[1:], generator=generator) for s in module.spec.noises]
    states = module.spec.states
    starts = [torch.tensor(s.value).expand(n, -1) if s.value else torch.zeros(n, *s.shape[1:]) for s in states]
    return [condition, *noises, *starts]


def joints_of(motion: torch.Tensor) -> torch.Tensor:
    return motion[:, :60].reshape(-1, 20, 3) / 2 + torch.tensor([0, 0.9, 0])


def test_spec_names_noises_and_states_as_the_formats_say() -> None:
    spec = make().spec
    assert [t.name for t in spec.inputs] == [
        "condition",
        "noise.style",
        "noise.view",
        "noise.jitter",
        "state.h",
        "state.pose",
        "state.place",
        "state.heading",
    ]
    assert [t.name for t in spec.outputs] == ["motion", "next.h", "next.pose", "next.place", "next.heading"]
    assert [(n.distribution, n.cadence, n.scale) for n in spec.noises] == [
        ("normal", "stream", 1.0),
        ("uniform", "stream", 1.0),
        ("normal", "step", 0.1),
    ]
    assert spec.states[1].value == (0.0,) * POSE_SIZE and spec.states[3].value == (1.0, 0.0)


@pytest.mark.parametrize(
    ("cell", "layers", "names"),
    [
        ("gru", 1, ["h"]),
        ("gru", 2, ["h0", "h1"]),
        ("lstm", 1, ["h", "c"]),
        ("lstm", 2, ["h0", "c0", "h1", "c1"]),
    ],
)
def test_every_cell_and_depth_keeps_its_spec(cell: str, layers: int, names: list[str]) -> None:
    module = make(cell=cell, layers=layers)
    assert [s.name for s in module.spec.states][: len(names)] == names
    with torch.no_grad():
        outputs = module(*inputs_of(module))
    assert [tuple(o.shape) for o in outputs] == [t.shape for t in module.spec.outputs]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="75"):
        SkeletalMotion(condition_size=41, motion_size=68)
    with pytest.raises(ValueError, match="action_size"):
        SkeletalMotion(condition_size=5, motion_size=75, action_size=12)
    with pytest.raises(ValueError, match="layers"):
        SkeletalMotion(condition_size=41, motion_size=75, layers=0)


def test_projection_gives_exact_lengths_and_keeps_directions() -> None:
    joints, lengths = torch.randn(7, 20, 3), torch.rand(20) + 0.1
    out = skeletal.project_bones(joints, lengths)
    for joint, parent in enumerate(PARENTS[1:], 1):
        bone, was = out[:, joint] - out[:, parent], joints[:, joint] - joints[:, parent]
        torch.testing.assert_close(bone.norm(dim=-1), lengths[joint].expand(7), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cosine_similarity(bone, was), torch.ones(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[:, 0], joints[:, 0])


@torch.no_grad()
def test_bones_floor_and_presence_hold_for_any_weights_over_many_steps() -> None:
    module = make()
    for weight in module.parameters():
        weight.mul_(6)
    feeds = inputs_of(module, n=5)
    for _ in range(60):
        motion, *states = module(*feeds)
        feeds[4:] = states
        joints = joints_of(motion)
        bones = (joints[:, 1:] - joints[:, list(PARENTS[1:])]).norm(dim=-1)
        torch.testing.assert_close(bones, module.bones[1:].expand(5, -1), atol=1e-5, rtol=0)
        assert joints[..., 1].min() > -1e-5
        assert 0 <= motion[:, 70:].min() and motion[:, 70:].max() <= 1
        place, heading = states[-2:]
        assert 0 <= place.min() and place.max() <= PLACE_PERIOD
        torch.testing.assert_close(heading.norm(dim=1), torch.ones(5), atol=1e-5, rtol=0)


@torch.no_grad()
def test_view_turns_the_picture_but_not_the_pose() -> None:
    module = make()
    feeds = inputs_of(module)
    feeds[2] = torch.zeros(1, 1)
    ahead, *states = module(*feeds)
    feeds[2] = torch.full((1, 1), 0.5)
    behind, *others = module(*feeds)
    flip = torch.tensor([-1.0, 1.0, -1.0]).repeat(20)
    torch.testing.assert_close(behind[:, :60], ahead[:, :60] * flip, atol=1e-5, rtol=0)
    torch.testing.assert_close(states[1], others[1])


@torch.no_grad()
def test_condition_beyond_the_action_is_not_read() -> None:
    module = make()
    feeds = inputs_of(module)
    first = module(*feeds)[0]
    feeds[0] = feeds[0].clone()
    feeds[0][:, 12:] = 0.5
    torch.testing.assert_close(module(*feeds)[0], first, atol=0, rtol=0)
    feeds[0][:, :12] = 1.0
    assert not torch.equal(module(*feeds)[0], first)


@torch.no_grad()
def test_fused_cell_of_training_equals_the_exported_one() -> None:
    module = make()
    feeds = inputs_of(module, n=4)
    plain = module(*feeds)
    fused = module.train()(*feeds)
    for a, b in zip(plain, fused):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_statistics_and_start_pose_travel_with_the_weights() -> None:
    module = make()
    other = SkeletalMotion(condition_size=41, motion_size=75, hidden=24)
    other.load_state_dict(module.state_dict())
    assert other.spec == module.spec
    assert {"mean", "deviation", "bones", "neutral"} <= set(module.state_dict())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_export_uses_plain_operators_and_agrees_over_a_rollout(cell: str) -> None:
    module = make(cell=cell, layers=2)
    feeds = inputs_of(module)
    names = [t.name for t in module.spec.inputs], [t.name for t in module.spec.outputs]
    file = io.BytesIO()
    torch.onnx.export(
        module, tuple(feeds), file, input_names=names[0], output_names=names[1], opset_version=17, dynamo=False
    )
    graph = onnx.load_from_string(file.getvalue())
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"GRU", "LSTM", "RNN", "Loop", "Scan", "If", "ScatterND"}
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    theirs = [f.numpy() for f in feeds]
    with torch.no_grad():
        for step in range(64):
            feeds[3] = module.jitter * torch.randn(1, POSE_SIZE, generator=torch.Generator().manual_seed(step))
            theirs[3] = feeds[3].numpy()
            motion, *states = module(*feeds)
            made, *kept = session.run(None, dict(zip(names[0], theirs)))
            np.testing.assert_allclose(made, motion.numpy(), atol=1e-4)  # float32 sums in another order, 64 steps deep
            feeds[4:], theirs[4:] = states, kept
