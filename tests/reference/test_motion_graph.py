from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.reference.motion_data import load_clips
from examples.reference.motion_graph import SHORTEST_STAY, STYLE_SIZE, MotionGraph, typical
from examples.reference.train_motion import fresh_module
from examples.reference.vocabulary import ACTIONS
from tests.reference.motion_samples import write_samples


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> MotionGraph:
    folder: Path = write_samples(tmp_path_factory.mktemp("motions"))
    return MotionGraph([c for c in load_clips(folder, mirrored=True) if c.split == "train"])


def steps_of(poses: np.ndarray) -> np.ndarray:
    joints = poses[..., :60].reshape(*poses.shape[:-1], 20, 3)
    return np.linalg.norm(np.diff(joints, axis=-3), axis=-1).max(-1)


def test_sequences_start_neutral_and_never_jump(graph: MotionGraph) -> None:
    made = graph.sequences(20, 300, switch=1 / 60, seed=1)
    np.testing.assert_allclose(made.poses[:, 0], np.tile(graph.neutral, (20, 1)), atol=1e-5)
    usual = max(steps_of(made_clip).max() for made_clip in (graph.poses[s:e] for s, e in zip(graph._start, graph._end)))
    assert steps_of(made.poses).max() < 1.5 * usual


def test_sequences_keep_bone_lengths(graph: MotionGraph) -> None:
    made = graph.sequences(6, 200, switch=1 / 40, seed=2)
    joints = made.poses[..., :60].reshape(6, 200, 20, 3)
    forearm = np.linalg.norm(joints[:, :, 14] - joints[:, :, 13], axis=-1)
    np.testing.assert_allclose(forearm, graph.lengths[14], atol=1e-4)


def test_a_style_plays_one_clip_of_an_action_and_its_mirror_image_the_mirrored(graph: MotionGraph) -> None:
    flip = np.ones(STYLE_SIZE)
    flip[0] = -1
    for style in np.random.default_rng(0).standard_normal((50, STYLE_SIZE)):
        for action in graph.actions:
            clip, other = graph.clips[graph.clip_of(action, style)], graph.clips[graph.clip_of(action, style * flip)]
            assert clip.action == ACTIONS[action]
            assert clip.mirrored != other.mirrored
            assert clip.name.replace(":mirrored", "") == other.name.replace(":mirrored", "")


def test_every_clip_is_played_by_some_style(graph: MotionGraph) -> None:
    styles = np.random.default_rng(0).standard_normal((400, STYLE_SIZE))
    walking = ACTIONS.index("walking")
    assert len({graph.clip_of(walking, s) for s in styles}) == sum(c.action == "walking" for c in graph.clips)


def test_actions_are_balanced_and_only_switch_after_a_stay(graph: MotionGraph) -> None:
    steady = graph.sequences(10, 60, seed=3)
    assert [int(a) for a in steady.actions[:, 0]] == graph.actions * 2
    assert (steady.actions == steady.actions[:, :1]).all()
    switching = graph.sequences(10, 400, switch=1 / 30, seed=3).actions
    for row in switching:
        changes = np.nonzero(np.diff(row))[0]
        assert len(changes) >= 2
        assert np.diff(np.concatenate([[-1], changes])).min() >= SHORTEST_STAY - 1


def test_same_seed_gives_the_same_sequences(graph: MotionGraph) -> None:
    first, again = graph.sequences(5, 80, switch=0.02, seed=9), graph.sequences(5, 80, switch=0.02, seed=9)
    np.testing.assert_array_equal(first.poses, again.poses)
    assert not np.array_equal(first.poses, graph.sequences(5, 80, switch=0.02, seed=10).poses)


def test_stored_codes_choose_the_same_clip_as_the_graph(graph: MotionGraph) -> None:
    module = fresh_module(graph, 8)
    styles = np.random.default_rng(1).standard_normal((200, STYLE_SIZE)).astype(np.float32)
    agreed = []
    for action in graph.actions:
        hot = torch.eye(len(ACTIONS))[action].expand(200, -1)
        ways = module.choose(hot, torch.from_numpy(styles)).unflatten(1, (len(ACTIONS), -1))
        torch.testing.assert_close(ways[:, action].sum(1), torch.ones(200))
        mine = [i for i, c in enumerate(graph.clips) if c.action == ACTIONS[action]]
        chosen = ways[:, action].argmax(1).tolist()
        assert [mine[c] for c in chosen] == [graph.clip_of(action, s) for s in styles]
        agreed.append(ways[:, action].amax(1).mean().item())
    assert min(agreed) > 0.9  # decided, not a mixture


def test_clips_that_stand_still_give_way_to_those_that_move(tmp_path: Path) -> None:
    clips = [c for c in load_clips(write_samples(tmp_path)) if c.action == "walking" and c.split == "train"]
    still = replace(clips[0], name="still", joints=np.repeat(clips[0].joints[:1], 200, 0))
    assert [c.name for c in typical([still, *clips], 2)] == [c.name for c in clips]
