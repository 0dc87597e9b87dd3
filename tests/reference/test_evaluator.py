from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from examples.reference import evaluator, train_evaluator
from examples.reference.drawing import random_looks
from examples.reference.evaluator import EvaluatorConfig, VideoEvaluator
from examples.reference.motion_data import load_clips
from examples.reference.train_evaluator import WINDOW, ClipWindows, Options, VideoRenderer, degrade, extend, labels_of
from examples.reference.vocabulary import ACTIONS, LOOK_SLOTS, PRESENCE_SLICE, SLOTS
from t2v_edge.errors import CheckpointError
from tests.reference.motion_samples import write_samples

CPU = torch.device("cpu")
TINY = EvaluatorConfig(size=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("motions"))


def random_video(n: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 16, 3, size, size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def test_evaluator_stays_below_its_size_and_reads_every_slot():
    model = VideoEvaluator().eval()
    assert sum(p.numel() for p in model.parameters()) < 800_000
    assert model(random_video(2, 128)).shape == (2, 41)
    parts = model.split(model(random_video(2, 128)))
    assert {slot: part.shape[1] for slot, part in parts.items()} == {slot: len(v) for slot, v in SLOTS.items()}
    assert model.read(random_video(2, 128)).shape == (2, 7)


def test_evaluator_takes_bytes_and_floats_alike():
    model = VideoEvaluator(TINY).eval()
    video = random_video()
    assert torch.allclose(model(video), model(video.float() / 255), atol=1e-5)


def test_evaluator_onnx_equals_torch(tmp_path: Path):
    torch.manual_seed(1)
    model = VideoEvaluator()
    evaluator.save_evaluator(tmp_path, model)
    path = evaluator.write_onnx(tmp_path)
    assert path.stat().st_size < 3_000_000
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    video = random_video(1, 128)
    (found,) = session.run(None, {"video": video.numpy()})
    wanted = evaluator.load_evaluator(tmp_path)(video).detach().numpy()
    assert np.ptp(wanted) > 1e-3
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max() + 1e-6  # float32 sums in another order


def test_saved_evaluator_is_half_precision_and_loads_as_it_was(tmp_path: Path):
    model = VideoEvaluator(TINY).eval()
    evaluator.save_evaluator(tmp_path, model, validation={"windows": 3})
    assert (tmp_path / "evaluator.safetensors").stat().st_size < 2.3 * sum(p.numel() for p in model.parameters())
    again = evaluator.load_evaluator(tmp_path)
    video = random_video()
    assert torch.allclose(again(video), model(video), atol=5e-3)  # fp16 keeps 11 bits
    described = json.loads((tmp_path / "evaluator.json").read_text("utf-8"))
    assert described["validation"] == {"windows": 3} and described["slots"]["action"] == list(ACTIONS)


def test_broken_evaluator_is_a_typed_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="train one"):
        evaluator.load_evaluator(tmp_path)
    evaluator.save_evaluator(tmp_path, VideoEvaluator(TINY))
    weights = tmp_path / "evaluator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="do not fit"):
        evaluator.load_evaluator(tmp_path)


@pytest.mark.parametrize("length", [13, 16, 25, 43])
def test_short_clips_loop_without_a_leap(length: int):
    phase = np.arange(length)[:, None] * 2 * np.pi / 12
    poses = np.concatenate([np.sin(phase + k) for k in np.linspace(0, 3, 74)], 1).astype(np.float32)
    looped = extend(poses, WINDOW)
    assert len(looped) == WINDOW
    largest = np.abs(np.diff(poses, axis=0)).max()
    assert np.abs(np.diff(looped, axis=0)).max() < 2 * largest


def test_windows_are_balanced_over_actions_and_never_leave_their_clip(data: Path):
    clips = [c for c in load_clips(data, mirrored=True) if c.split == "train"]
    windows = ClipWindows(clips, CPU)
    present = [ACTIONS[i] for i in windows.present]
    assert set(present) == {c.action for c in clips}
    generator = torch.Generator().manual_seed(0)
    action = windows.present.repeat_interleave(8)
    motion = windows.sample(action, 16, 8, generator, varied=False)
    assert motion.shape == (len(action), 16, 75)
    dribbling = motion[action == ACTIONS.index("dribbling a basketball")]
    walking = motion[action == ACTIONS.index("walking")]
    assert dribbling[..., PRESENCE_SLICE.start].mean() > 0.5 and walking[..., PRESENCE_SLICE].max() == 0


def test_worn_videos_keep_their_hue(data: Path):
    generator = torch.Generator().manual_seed(0)
    video = torch.zeros(8, 16, 3, 32, 32, dtype=torch.uint8)
    video[:, :, 0], video[:, :, 2] = 200, 60
    degraded = degrade(video, generator)
    assert degraded.shape == video.shape and 0 <= degraded.min() and degraded.max() <= 1
    assert (degraded - video.float() / 255).abs().mean() > 0.005
    red, green, blue = degraded.mean((1, 3, 4)).unbind(1)
    assert (red > 2.5 * blue).all() and (blue > 2 * green).all()


def test_painter_draws_what_the_labels_say(data: Path):
    clips = load_clips(data)
    generator = torch.Generator().manual_seed(0)
    motion = ClipWindows(clips, CPU).sample(torch.tensor([ACTIONS.index("walking")]), 3, 8, generator, varied=False)
    look = random_looks(1, generator)
    video = VideoRenderer(CPU, supersample=1).paint(motion, look, 32)
    assert video.shape == (1, 3, 3, 32, 32) and video.dtype == torch.uint8
    labels = labels_of(torch.tensor([10]), look)[0].tolist()
    assert labels[0] == 10 and len(labels) == 1 + len(LOOK_SLOTS)
    darker = VideoRenderer(CPU, supersample=1).paint(motion, torch.zeros_like(look), 32)
    assert video.float().mean() > darker.float().mean()


def test_training_saves_and_resumes(data: Path, tmp_path: Path, monkeypatch):
    ticks = itertools.count(step=1.5)  # seconds that a step takes, however busy the machine is
    monkeypatch.setattr(train_evaluator, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    options = Options(minutes=0.05, batch=4, fresh=2, ring=8, windows=1, save_s=100, supersample=1)
    train_evaluator.train(data, tmp_path, options, CPU, False, VideoEvaluator(TINY))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    longer = Options(**{**vars(options), "minutes": 0.12})
    result = train_evaluator.train(data, tmp_path, longer, CPU, True, VideoEvaluator(TINY))
    resumed = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["step"], resumed["step"]) == (2, 5) and resumed["elapsed_s"] >= 0.12 * 60
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    assert [row["step"] for row in logged] == [2, 4] and all(np.isfinite(row["loss"]) for row in logged)
    assert result["windows"] == len(result["actions"]) == sum(map(sum, result["confusion"]))
    assert result["without_props"]["action"]["count"] == result["windows"]
    names = {"evaluator.json", "evaluator.onnx", "evaluator.safetensors", "curves.png", "confusion.png"}
    assert names <= {path.name for path in tmp_path.iterdir()}
