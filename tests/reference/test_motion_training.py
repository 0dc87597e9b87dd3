from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.reference import rollout, train_motion
from examples.reference.motion_data import load_clips
from examples.reference.motion_graph import MotionGraph
from examples.reference.vocabulary import ACTIONS, FPS
from t2v_export.models.skeletal import POSE_SIZE, SkeletalMotion
from tests.reference.motion_samples import write_samples

SMALL = [
    "--hidden",
    "24",
    "--batch",
    "8",
    "--steps",
    "16",
    "--sequences",
    "20",
    "--length",
    "80",
    "--rollout",
    "64",
    "--streams",
    "1",
    "--reader-steps",
    "5",
    "--device",
    "cpu",
    "--minutes",
    "1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def graph(data: Path) -> MotionGraph:
    return MotionGraph([c for c in load_clips(data) if c.split == "train"])


def test_loss_falls_within_a_few_steps(graph: MotionGraph) -> None:
    args = train_motion.parse_arguments(["--data", "x", "--out", "x", *SMALL, "--lr", "5e-3"])
    torch.manual_seed(0)
    training = train_motion.MotionTraining(args, graph, train_motion.build_sequences(graph, 20, 80, 0))
    training.capture()
    training.step_index = 100  # past the learning rate's warm-up
    losses = []
    for _ in range(80):
        training.step(0.1)
        losses.append(training.loss.item())
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_training_writes_its_files_and_resumes_where_it_stopped(data: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--out", str(tmp_path), *SMALL]
    train_motion.train(train_motion.parse_arguments([*command, "--limit", "5"]))
    assert train_motion.load_state(tmp_path / "motion.state.pt")["step"] == 5
    train_motion.train(train_motion.parse_arguments([*command, "--limit", "8", "--resume"]))
    assert train_motion.load_state(tmp_path / "motion.state.pt")["step"] == 8
    lines = [json.loads(line) for line in (tmp_path / "motion.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("final")] == [5, 8]
    for name in ("motion_curve.png", "motion_sheet.png"):
        assert (tmp_path / name).stat().st_size > 1000
    vectors = np.load(tmp_path / "motion_vectors.npy")
    assert vectors.shape[1] == 75 and np.isfinite(vectors).all()
    assert not list(tmp_path.glob("*.part*"))
    weights = train_motion.load_state(tmp_path / "motion.pt")
    SkeletalMotion(condition_size=41, motion_size=75, hidden=24).load_state_dict(weights)


def test_free_stretches_grow_and_openings_live_alone_late(graph: MotionGraph) -> None:
    args = train_motion.parse_arguments(["--data", "x", "--out", "x", *SMALL, "--batch", "200", "--steps", "60"])
    training = train_motion.MotionTraining(args, graph, train_motion.build_sequences(graph, 20, 80, 0))
    training.draw(0.0)
    early = training.taught.mean().item()
    training.draw(1.0)
    late = training.taught[..., 0]
    assert early > 0.5 and late.mean() < 0.25
    assert (late[0] == 1).all()
    assert 0.05 < (late.sum(0) == 1).float().mean() < 0.35  # streams that see only the start pose


def test_conditions_blend_linearly_and_stay_probabilities() -> None:
    labels = torch.tensor([[2] * 10 + [5] * 10])
    made = rollout.conditions_of(labels, 6)[0]
    torch.testing.assert_close(made.sum(1), torch.ones(20))
    torch.testing.assert_close(made[9:16, 5], torch.tensor([0, 1, 2, 3, 4, 5, 6]) / 6)
    torch.testing.assert_close(made[0], torch.eye(len(ACTIONS))[2])


def test_joint_speed_counts_the_whole_bodys_travel() -> None:
    poses = torch.zeros(1, 40, POSE_SIZE)
    poses[..., 61], poses[..., 62] = 1.5 / FPS, 0.1
    torch.testing.assert_close(rollout.joint_speed(poses), torch.full((1, 39, 20), 1.5), atol=1e-4, rtol=0)


def test_data_speed_matches_a_clip_of_known_pace(data: Path) -> None:
    speeds = rollout.data_speeds([c for c in load_clips(data) if c.name == "walk_3"])
    whole, limbs = speeds[ACTIONS.index("walking")]
    assert 1.0 < whole < 1.6 and 0.05 < limbs < whole
    assert (speeds[ACTIONS.index("dancing")] == 0).all()


@torch.no_grad()
def test_a_stage_that_stands_still_is_called_frozen_and_one_that_flails_exploded(graph: MotionGraph) -> None:
    module = train_motion.fresh_module(graph, 16).eval()
    for weight in module.parameters():
        weight.zero_()
    speeds, reader = torch.ones(len(ACTIONS), 2), rollout.ActionReader(8).eval()
    still, played = rollout.free_run(module, reader, speeds, streams=1, steps=64)
    assert still["frozen_or_exploded"] == 1 and still["actions"]["running"]["frozen"] == 1
    assert still["bone_error"] < 1e-4 and played.motions.shape == (len(ACTIONS), 64, 75)
    module.leave.bias[60:62] = 50.0
    flailing, _ = rollout.free_run(module, reader, speeds * 0.01, streams=1, steps=64)
    assert flailing["actions"]["running"]["exploded"] == 1


def test_bone_error_is_relative_to_the_worst_bone(graph: MotionGraph) -> None:
    poses = torch.from_numpy(graph.neutral).repeat(1, 4, 1)
    lengths = torch.from_numpy(graph.lengths)
    assert rollout.bone_error(poses, lengths).item() < 1e-4
    longer = lengths.clone()
    longer[3] *= 1.25
    assert rollout.bone_error(poses, longer).item() == pytest.approx(0.2, abs=1e-3)


def test_reader_tells_the_sample_actions_apart(graph: MotionGraph) -> None:
    module = train_motion.fresh_module(graph, 8)
    reader = rollout.train_reader(module, graph.clips, steps=40, sequences=15)
    data = graph.sequences(15, 128, seed=99)
    seen = rollout.read(reader, module, torch.from_numpy(data.poses))[:, 1:]
    assert (seen == torch.from_numpy(data.actions)[:, :1]).float().mean() > 0.8
