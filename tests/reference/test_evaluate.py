from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from examples.reference import evaluate, evaluator, rolling
from examples.reference.captions import Caption
from examples.reference.measures import derangement, percent
from examples.reference.motion_data import features, load_clips, to_motion_vectors
from examples.reference.play import Job, Studio, Take, read_jobs
from examples.reference.rollout import joint_speed
from examples.reference.vocabulary import ACTIONS, CONDITION_SIZE, FLOOR_SLICE, MOTION_SIZE, SLOTS
from t2v_edge import Manifest, Pipeline, write_bundle
from t2v_edge.bundle.bundle import GraphEntry, TokenizerSpec, VideoSpec
from t2v_edge.errors import CheckpointError, UsageError
from t2v_edge.spec import NoiseSpec, StageSpec, TensorSpec
from t2v_export.evaluate.readings import UNNAMED, Readings, wilson
from t2v_export.graph.from_torch import stage_to_onnx
from t2v_export.models.skeletal import SkeletalMotion
from tests.reference.motion_samples import write_samples

TOKENS, SIDE, STEPS = 8, 32, 64


class TinyText(nn.Module):
    spec = StageSpec(
        "text",
        (TensorSpec("input_ids", (1, TOKENS), "int64"), TensorSpec("attention_mask", (1, TOKENS), "int64")),
        (TensorSpec("condition", (1, CONDITION_SIZE)),),
    )

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, CONDITION_SIZE)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax((self.table(ids) * mask[..., None]).sum(1), -1)


class TinyRender(nn.Module):
    pixel_range = "0..1"
    spec = StageSpec(
        "render",
        (TensorSpec("motion", (1, MOTION_SIZE)), TensorSpec("condition", (1, CONDITION_SIZE))),
        (TensorSpec("frame", (1, 3, SIDE, SIDE)),),
        (NoiseSpec("look", (1, 4)),),
    )

    def __init__(self) -> None:
        super().__init__()
        self.paint = nn.Linear(MOTION_SIZE + CONDITION_SIZE + 4, 3 * SIDE * SIDE)

    def forward(self, motion: Tensor, condition: Tensor, look: Tensor) -> Tensor:
        return torch.sigmoid(self.paint(torch.cat([motion, condition, look], 1)).unflatten(1, (3, SIDE, SIDE)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Studio:
    """Random weights on real contracts: skeletal motion, tiny text and render stages, an untrained evaluator."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("studio")
    motion = SkeletalMotion(condition_size=CONDITION_SIZE, motion_size=MOTION_SIZE, hidden=8, action_size=len(ACTIONS))
    neutral = torch.from_numpy(features(load_clips(data)[0])[0])
    motion.set_statistics(neutral, torch.full_like(neutral, 0.05), motion.bones, neutral)
    words = ["[PAD]", "[UNK]", "a", "person", "is", *sorted({w for action in ACTIONS for w in action.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    files, graphs, specs = {"tokenizer.json": tokenizer.to_str().encode()}, {}, {}
    for stage, module in (("text", TinyText()), ("motion", motion), ("render", TinyRender())):
        spec = module.spec
        if stage == "render":
            spec = StageSpec("render", spec.feeds, (TensorSpec("frame", (1, SIDE, SIDE, 3), "uint8"),), spec.noises)
        specs[stage], graphs[stage] = spec, GraphEntry(f"fp32/{stage}.onnx", "fp32", 17)
        files[f"fp32/{stage}.onnx"] = stage_to_onnx(module.eval(), spec).SerializeToString()
    manifest = Manifest(
        "tiny",
        VideoSpec(SIDE, SIDE, 16, 6),
        TokenizerSpec("tokenizer.json", TOKENS, 0),
        specs,
        {"fp32": graphs},
        dict.fromkeys(specs, "fp32"),
    )
    write_bundle(folder / "bundle", manifest, files)
    model = evaluator.VideoEvaluator(evaluator.EvaluatorConfig(size=32))
    evaluator.save_evaluator(folder / "checkpoint" / "evaluator", model, validation={"windows": 12})
    evaluator.write_onnx(folder / "checkpoint" / "evaluator")
    return Studio(folder / "bundle", folder / "checkpoint" / "evaluator")


@pytest.mark.parametrize(
    "right, count, low, high",
    [
        (8, 10, 0.490162, 0.943318),
        (95, 100, 0.888250, 0.978458),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_has_its_known_values(right: int, count: int, low: float, high: float):
    assert wilson(right, count) == pytest.approx((low, high), abs=2e-6)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_leaves_nothing_in_its_place(count: int):
    order = derangement(count, np.random.default_rng(4))
    assert sorted(order) == list(range(count)) and (order != np.arange(count)).all()


def synthetic(n: int = 1200) -> Readings:
    rng = np.random.default_rng(2)
    named = np.stack([rng.integers(0, 12, n), rng.choice(8, n, p=[0.3] + [0.1] * 7)], 1)
    read = np.where(rng.random(named.shape) < 0.97, named, 0)
    named[rng.random(n) < 0.4, 1] = UNNAMED
    return Readings(("action", "shirt"), named, read)


def test_accuracy_counts_only_captions_that_name_a_slot():
    named, read = np.array([[1, 2], [0, UNNAMED], [1, 0]]), np.array([[1, 2], [0, 5], [0, 0]])
    readings = Readings(("action", "shirt"), named, read)
    found = readings.accuracy()
    assert (found["action"]["right"], found["action"]["count"]) == (2, 3)
    assert (found["shirt"]["right"], found["shirt"]["count"]) == (2, 2)
    assert (found["all"]["right"], found["all"]["count"]) == (2, 3)


def test_shuffled_captions_fall_to_the_expected_chance():
    readings = synthetic()
    assert readings.accuracy()["action"]["rate"] > 0.95
    rng = np.random.default_rng(0)
    shuffles = [readings.shuffled(derangement(len(readings), rng)).accuracy() for _ in range(100)]
    chance = readings.chance()
    for slot in ("action", "shirt", "all"):
        rates = [accuracy[slot]["rate"] for accuracy in shuffles]
        error = np.std(rates) / np.sqrt(len(rates))
        assert np.mean(rates) == pytest.approx(chance[slot]["expected"], abs=4 * error) and error < 0.002
    assert chance["action"]["uniform"] == pytest.approx(1 / 12, abs=1e-4)
    assert chance["shirt"]["majority"] == pytest.approx(0.3, abs=0.05)


def test_chance_is_the_exact_mean_over_all_other_videos():
    readings = synthetic(40)
    others = [(i, j) for i in range(40) for j in range(40) if i != j]
    told = [(i, j) for i, j in others if readings.named[i, 1] != UNNAMED]
    met = np.mean([readings.named[i, 1] == readings.read[j, 1] for i, j in told])
    fits = (readings.named[:, None] == readings.read[None]) | (readings.named[:, None] == UNNAMED)
    both = np.mean([fits[i, j].all() for i, j in others])
    assert readings.chance()["shirt"]["expected"] == pytest.approx(met, abs=1e-5)
    assert readings.chance()["all"]["expected"] == pytest.approx(both, abs=1e-5)


def test_played_frames_are_the_streams_frames(studio: Studio):
    with Pipeline.open(studio.bundle, threads=1) as pipeline:
        stream = pipeline.stream("a person is walking", then=[(1.0, "a person is dancing")], fps=24, seconds=3, seed=5)
        frames = list(stream)
    take = studio.take([(0, "a person is walking"), (16, "a person is dancing")], 5, 48)
    for index in (0, 1, 23, 25, 40, 70):
        assert np.array_equal(studio.frame(take, index * 16 / 24), frames[index].pixels)
    assert not np.array_equal(frames[20].pixels, frames[60].pixels)


def test_reading_agrees_between_one_and_two_processes(studio: Studio):
    jobs = [Job(((0, f"a person is {action}"),), seed) for seed, action in enumerate(ACTIONS[:3])]
    alone = list(read_jobs(studio, jobs, 1))
    assert list(read_jobs(studio, jobs, 2)) == alone
    assert all(len(row) == len(SLOTS) for row in alone)


def test_reader_sees_what_torch_sees(studio: Studio):
    frames = [np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for k in range(16)]
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None]
    assert studio.read(frames) == evaluator.load_evaluator(studio.evaluator).read(video)[0].tolist()


def test_world_speed_from_motion_vectors_is_that_of_the_poses(data: Path):
    poses = features(load_clips(data)[0])[None]
    found = rolling.joint_speed(to_motion_vectors(poses, np.array([0.7], np.float32))[0].numpy())
    wanted = joint_speed(torch.from_numpy(poses))[0].numpy()
    assert found == pytest.approx(wanted, abs=2e-3)


def test_still_motion_is_frozen_and_a_leap_is_a_jump(data: Path):
    clip = max(load_clips(data), key=len)
    motion = to_motion_vectors(np.concatenate([features(clip)] * 2)[None])[0].numpy()
    speeds, bones = rolling.mean_speeds(motion).mean(0), rolling.bone_lengths(motion).mean(0)
    alive = rolling.measure_run(motion, speeds, bones)
    assert alive["ratio"] == pytest.approx(1) and alive["bones"] < 1e-3
    assert rolling.measure_run(np.repeat(motion[:1], 64, 0), speeds, bones)["late"] < rolling.FROZEN
    sliding = np.repeat(motion[:1], 64, 0)
    sliding[:, FLOOR_SLICE] = motion[:64, FLOOR_SLICE]
    assert rolling.measure_run(sliding, speeds, bones)["late"] < rolling.FROZEN
    assert not rolling.measure_run(np.full_like(motion, np.nan), speeds, bones)["most"] <= rolling.EXPLODED
    smooth = to_motion_vectors(np.repeat(features(clip)[:1], 96, 0)[None])[0].numpy()
    smooth[:, 3] += 0.1 * np.sin(np.arange(96))
    leap = smooth.copy()
    leap[48:, 3] += 1.0
    ratios = [rolling.jump(Take(m, m, {}), 48) for m in (smooth, leap)]
    assert ratios[0] == pytest.approx(1, abs=0.2) and ratios[1] > 3


def write_captions(folder: Path, count: int) -> Path:
    path = folder / "captions.jsonl"
    rows = [
        Caption(
            f"a person is {ACTIONS[i % 12]}",
            ("en", "zh")[i % 2],
            {"action": ACTIONS[i % 12], "shirt": SLOTS["shirt"][3 * (i % 12) % 8]},
        )
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), "utf-8")
    return path


def test_one_command_writes_report_table_and_card(studio: Studio, data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rolling, "ACTIONS", ("walking", "dribbling a basketball"))
    card = tmp_path / "README.md"
    card.write_text(f"# Card\n{evaluate.MARKERS[0]}\nold\n{evaluate.MARKERS[1]}\nend\n", "utf-8")
    captions = write_captions(tmp_path, 12)
    code = evaluate.main(
        [
            str(studio.bundle),
            "--checkpoint",
            str(studio.evaluator.parent),
            "--captions",
            str(captions),
            "-n",
            "12",
            "--processes",
            "1",
            "--rollouts",
            "--steps",
            str(STEPS),
            "--streams",
            "2",
            "--data",
            str(data),
            "-o",
            str(tmp_path / "report.json"),
            "--markdown",
            str(tmp_path / "table.md"),
            "--update-card",
            str(card),
        ]
    )
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["captions"]["overall"]["all"]["count"] == len(report["videos"]) == 12
    assert report["captions"]["english"]["action"]["count"] == report["captions"]["chinese"]["action"]["count"] == 6
    assert report["captions"]["composition"]["all"]["count"] == 12  # the shirts above are held-out pairs
    assert report["rollouts"]["frozen_or_exploded"]["count"] == 4 and report["switches"]["pairs"] == 2
    text = card.read_text("utf-8")
    assert text.startswith("# Card\n") and text.endswith(f"{evaluate.MARKERS[1]}\nend\n") and "old" not in text
    assert (tmp_path / "table.md").read_text("utf-8") in text and "| action |" in text and "captions shuffled" in text


def test_wrong_inputs_are_typed_errors_with_remedies(studio: Studio, tmp_path: Path):
    with pytest.raises(UsageError, match="lower -n"):
        evaluate.load_heldout(write_captions(tmp_path, 3), 10)
    with pytest.raises(UsageError, match="JSON-lines"):
        evaluate.load_heldout(tmp_path / "absent.jsonl", 10)
    with pytest.raises(UsageError, match="markers|lines"):
        evaluate.update_card(write_captions(tmp_path, 3), "text")
    with pytest.raises(CheckpointError, match="evaluator/"):
        Studio(studio.bundle, tmp_path).describe()


def test_percent_of_nothing_is_a_dash():
    assert percent({"count": 0, "rate": 0.0, "low": 0, "high": 1}) == "–" == percent(None)
    assert percent({"count": 8, "rate": 0.5, "low": 0.25, "high": 0.75}) == "50.0 (25.0–75.0)"
