from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.reference import motion_data, props
from examples.reference.motion_data import Clip, PoseBank
from examples.reference.vocabulary import (
    FLOOR_SLICE,
    JOINT_SLICE,
    JOINTS,
    MIRRORED,
    MOTION_SIZE,
    PARENTS,
    PRESENCE_SLICE,
    PROP_SLICE,
    PROPS,
)
from t2v_export.models import skeletal
from tests.reference.motion_samples import person, write_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def clips(data: Path) -> list[Clip]:
    return motion_data.load_clips(data)


def find(clips: list[Clip], name: str) -> Clip:
    return next(c for c in clips if c.name == name)


def bones(joints: np.ndarray) -> np.ndarray:
    return np.linalg.norm(joints[:, 1:] - joints[:, list(PARENTS[1:])], axis=-1)


def test_last_quarter_of_an_actions_only_clip_is_held_out(clips: list[Clip]) -> None:
    assert motion_data.held_out(clips) == ["punch_1:end"]
    kept, end = find(clips, "punch_1"), find(clips, "punch_1:end")
    assert (kept.split, end.split) == ("train", "test")
    assert len(end) == round(0.25 * (len(kept) + len(end)))


def test_only_the_told_actions_are_loaded_and_at_sixteen_fps(clips: list[Clip]) -> None:
    assert "climb_1" not in {c.name for c in clips}
    assert len(find(clips, "walk_1")) == int(89 * 16 / 30) + 1


def test_all_clips_share_one_symmetric_skeleton_above_the_floor(clips: list[Clip]) -> None:
    lengths = motion_data.bone_lengths(clips)
    np.testing.assert_allclose(lengths, lengths[list(MIRRORED)], atol=1e-5)
    for clip in clips:
        np.testing.assert_allclose(bones(clip.joints), np.tile(lengths[1:], (len(clip), 1)), atol=1e-5)
        assert clip.joints[..., 1].min() >= -1e-6


def test_mirroring_twice_gives_the_clip_back_and_once_swaps_hands(clips: list[Clip]) -> None:
    clip = find(clips, "sword_1")
    once, twice = motion_data.mirror(clip), motion_data.mirror(motion_data.mirror(clip))
    np.testing.assert_array_equal(twice.joints, clip.joints)
    np.testing.assert_array_equal(twice.prop, clip.prop)
    left = once.joints[:, JOINTS.index("l_hand")]
    np.testing.assert_array_equal(once.prop[:, 0], left)


def test_layout_agrees_with_the_vocabulary() -> None:
    assert skeletal.PARENTS == PARENTS and skeletal.MOTION_SIZE == MOTION_SIZE
    assert skeletal.PRESENCE.stop - skeletal.PRESENCE.start == len(PROPS)


def test_motion_vectors_replay_the_clip_they_came_from(clips: list[Clip]) -> None:
    clip = find(clips, "walk_2")
    poses = motion_data.features(clip)[None]
    start = motion_data.heading(clip.joints)[0] - poses[0, 0, 62]
    vectors = motion_data.to_motion_vectors(poses, np.array([start], np.float32))[0].numpy()
    hip = clip.joints[:, :1] * [1, 0, 1]
    seen = vectors[:, JOINT_SLICE].reshape(-1, 20, 3) / 2 + [0, 0.9, 0]
    np.testing.assert_allclose(seen, clip.joints - hip, atol=2e-3)
    ends = vectors[:, PROP_SLICE].reshape(-1, 2, 3) / 2 + [0, 0.9, 0]
    np.testing.assert_allclose(ends, clip.prop - hip, atol=2e-3)
    travelled = np.unwrap(np.arctan2(vectors[:, 61], vectors[:, 63]), period=2 * np.pi) / np.pi
    np.testing.assert_allclose(np.diff(travelled), np.diff(clip.joints[:, 0, 2]), atol=2e-3)


def test_yaw_of_half_a_turn_faces_the_other_way(clips: list[Clip]) -> None:
    poses = np.stack([motion_data.features(find(clips, "walk_1"))] * 2)
    ahead, behind = motion_data.to_motion_vectors(poses, torch.tensor([0.0, torch.pi]))
    flip = torch.tensor([-1.0, 1.0, -1.0]).repeat(20)
    torch.testing.assert_close(behind[:, JOINT_SLICE], ahead[:, JOINT_SLICE] * flip, atol=1e-4, rtol=0)


def test_heading_grows_when_the_person_turns_to_the_left() -> None:
    spin = motion_data.heading(person(60, spin=0.5))
    assert spin[-1] - spin[0] == pytest.approx(0.5 * 59 / 30, abs=0.02)


def test_dribbled_ball_meets_floor_and_hand_and_never_teleports(clips: list[Clip]) -> None:
    clip = find(clips, "dribble_1")
    ball, hand = clip.prop[:, 0], clip.joints[:, JOINTS.index("r_hand")]
    assert clip.presence[:, PROPS.index("basketball")].min() == 1
    assert ball[:, 1].min() == pytest.approx(props.BASKETBALL_RADIUS, abs=1e-5)
    bounces = int(((ball[1:-1, 1] < 0.2) & (ball[1:-1, 1] <= ball[:-2, 1]) & (ball[1:-1, 1] < ball[2:, 1])).sum())
    assert 5 <= bounces <= 8  # 4 s at 1.6 Hz
    assert np.linalg.norm(np.diff(ball, axis=0), axis=-1).max() <= props.MAX_BALL_STEP + 1e-5
    gap = hand[:, 1] - ball[:, 1]
    assert gap.min() > 0.1 and np.sort(gap)[len(gap) // 4] < 0.2


def test_football_rolls_on_the_floor_ahead_of_the_person(clips: list[Clip]) -> None:
    clip = find(clips, "soccer_1")
    angle = motion_data.heading(clip.joints)
    away = clip.prop[:, 0] - clip.joints[:, 0]
    ahead = away[:, 0] * np.sin(angle) + away[:, 2] * np.cos(angle)
    np.testing.assert_allclose(clip.prop[..., 1], props.FOOTBALL_RADIUS, atol=1e-6)
    assert ahead.min() > 0.2 and ahead.max() < 1.2


def test_sword_has_its_length_and_starts_in_the_right_hand(clips: list[Clip]) -> None:
    clip = find(clips, "sword_1")
    np.testing.assert_array_equal(clip.prop[:, 0], clip.joints[:, JOINTS.index("r_hand")])
    length = np.linalg.norm(clip.prop[:, 1] - clip.prop[:, 0], axis=-1)
    np.testing.assert_allclose(length, props.SWORD_LENGTH, atol=1e-5)


def test_shot_ball_is_held_then_flies_and_fades() -> None:
    joints = person(64)[::2][:32].repeat(2, 0)
    left, right = JOINTS.index("l_hand"), JOINTS.index("r_hand")
    joints[20:40, [left, right]] = [[0.05, 1.7, 0.3], [-0.05, 1.7, 0.3]]
    joints[40:, [left, right]] = [[0.3, 1.7, 0.3], [-0.3, 1.7, 0.3]]
    ball, shown = props.shot_ball(joints, np.tile([0.0, 1.0], (len(joints), 1)))
    np.testing.assert_allclose(ball[35], [0, 1.7, 0.3], atol=0.02)
    assert shown[:40].min() == 1 and shown[50:].max() == 0
    assert np.all(np.diff(shown) <= 0)
    assert ball[43, 1] > 2.0 and ball[43, 2] > 0.6


def test_without_a_prop_both_ends_wait_unseen_in_the_right_hand(clips: list[Clip]) -> None:
    clip = find(clips, "walk_1")
    hand = clip.joints[:, JOINTS.index("r_hand")]
    np.testing.assert_array_equal(clip.prop, np.stack([hand, hand], 1))
    assert clip.presence.max() == 0


def test_pose_bank_keeps_bones_and_ranges_and_follows_its_generator(clips: list[Clip]) -> None:
    bank = PoseBank(clips)
    first = bank.sample(500, torch.Generator().manual_seed(3))
    again = bank.sample(500, torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first, bank.sample(500, torch.Generator().manual_seed(4)))
    seen = bones(first[:, JOINT_SLICE].reshape(-1, 20, 3).numpy() / 2)
    np.testing.assert_allclose(seen, np.tile(motion_data.bone_lengths(clips)[1:], (500, 1)), atol=1e-4)
    floor = first[:, FLOOR_SLICE]
    torch.testing.assert_close(floor[:, :2] ** 2 + floor[:, 2:] ** 2, torch.ones(500, 2))
    assert 0 <= first[:, PRESENCE_SLICE].min() and first[:, PRESENCE_SLICE].max() <= 1
    assert (first[:, PRESENCE_SLICE] > 0.5).any(0).sum() == 4  # the actions of the sample folder with props


def test_pose_bank_shows_rare_actions_as_often_as_half_its_balance(clips: list[Clip]) -> None:
    some = [c for c in clips if c.action in ("walking", "sword fighting")]
    vectors = PoseBank(some).sample(4000, torch.Generator().manual_seed(0))
    frames = {a: sum(len(c) for c in some if c.action == a) for a in ("walking", "sword fighting")}
    expected = 0.25 + 0.5 * frames["sword fighting"] / sum(frames.values())
    shown = vectors[:, PRESENCE_SLICE][:, PROPS.index("sword")].mean().item()
    assert shown == pytest.approx(expected * 0.95, abs=0.06)  # one pose in ten is faded, by half
