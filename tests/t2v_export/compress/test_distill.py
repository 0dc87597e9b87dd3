"""Students learn what their teachers do, from captions and noise alone; a stopped training goes on all the same."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from t2v_edge.errors import UsageError
from t2v_edge.play.clock import Blend
from t2v_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from t2v_export.checkpoint.config import StageConfig
from t2v_export.compress.distill import DistillOptions, distill_stage
from t2v_export.compress.distill import streams as streams_module
from t2v_export.compress.distill import training as training_module
from t2v_export.compress.distill.motion import MotionTrainer
from t2v_export.compress.distill.render import Groups, RenderTrainer, alike, contrast, image_modules, near_edges
from t2v_export.compress.distill.streams import BatchDraws, CaptionConditions, play
from t2v_export.compress.distill.text import Neighbours, vary
from t2v_export.errors import TrainingError
from t2v_export.recipe import Distill

CAPTIONS = [f"a {who} {verb}" for who in ("person", "人") for verb in ("is walking", "running", "dancing", "跑步")]
SHORT = Distill(
    text_steps=80,
    text_batch=16,
    text_rate=5e-3,
    motion_steps=60,
    motion_batch=16,
    length=8,
    motion_rate=1e-2,
    render_steps=80,
    render_batch=8,
    render_rate=5e-3,
)


@pytest.fixture(autouse=True)
def quick_warm_up(monkeypatch):
    monkeypatch.setattr(training_module, "WARM_UP", 5)


@pytest.fixture
def teacher(make_checkpoint) -> Checkpoint:
    return load_checkpoint(make_checkpoint(render=StageConfig("upsample", {"channels": [12, 8], "noise_size": 3})))


def fresh(checkpoint: Checkpoint, seed: int = 1) -> Checkpoint:
    """A checkpoint of the same classes with weights that know nothing."""
    torch.manual_seed(seed)
    modules = {}
    for stage, module in checkpoint.modules.items():
        modules[stage] = copy.deepcopy(module)
        for part in modules[stage].modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
    return replace(checkpoint, **modules)


def settings(teacher: Checkpoint, **options: object) -> DistillOptions:
    return DistillOptions(teacher, fresh(teacher), replace(SHORT, **options), CAPTIONS)


def test_text_student_gives_held_out_captions_the_teachers_condition(teacher):
    _, log = distill_stage(settings(teacher), "text")
    assert log[-1]["held_loss"] < 0.2 * log[0]["held_loss"] and log[-1]["error"] < log[0]["error"]


def test_motion_student_moves_as_the_teacher_does(teacher):
    given = settings(teacher, motion_steps=300)
    module, log = distill_stage(given, "motion")
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    pool = torch.rand(8, 6).softmax(1)
    contracts = teacher.specs["motion"], teacher.specs["render"]
    right, made, ignorant = (
        play(m, *contracts, CaptionConditions(pool, 32, 6, torch.Generator().manual_seed(5)), 40).motion
        for m in (teacher.motion, module, given.student.motion)
    )
    assert (made - right).std() < 0.6 * (ignorant - right).std()


@pytest.mark.parametrize("adversarial", [0.0, 0.01])
def test_render_student_draws_the_teachers_frames(teacher, adversarial):
    _, log = distill_stage(settings(teacher, adversarial=adversarial), "render")
    assert log[-1]["psnr"] > log[0]["psnr"] + 4 and log[-1]["psnr_low"] > log[0]["psnr_low"]
    assert ("critic" in log[-1]) == bool(adversarial)


@pytest.mark.parametrize("stage, rounding", [("text", 0.0), ("motion", 0.0), ("render", 0.0), ("render", 0.7)])
def test_stopped_training_goes_on_to_the_same_weights(teacher, stage, rounding, tmp_path, monkeypatch):
    steps = dict.fromkeys(("text_steps", "motion_steps", "render_steps"), 12)
    given = settings(teacher, **steps, adversarial=0.01, quantization_aware=rounding)
    whole, _ = distill_stage(given, stage)
    update = training_module.Average.update

    def stopped(self, step):
        update(self, step)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training_module.Average, "update", stopped)
    with pytest.raises(KeyboardInterrupt):
        distill_stage(given, stage, tmp_path)
    monkeypatch.setattr(training_module.Average, "update", update)
    resumed, log = distill_stage(given, stage, tmp_path)
    assert log[-1]["step"] == 12
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


def test_neither_checkpoint_is_changed_by_a_lesson(teacher):
    given = settings(teacher, render_steps=3)
    before = {
        (who, stage, name): tensor.clone()
        for who, checkpoint in (("teacher", given.teacher), ("student", given.student))
        for stage, module in checkpoint.modules.items()
        for name, tensor in module.state_dict().items()
    }
    made, _ = distill_stage(given, "render")
    for (who, stage, name), tensor in before.items():
        assert torch.equal(getattr(given, who).modules[stage].state_dict()[name], tensor), (who, stage, name)
    assert not any(part._forward_hooks for part in made.modules())


def test_divergence_ends_the_training_with_the_remedy(teacher):
    given = settings(teacher, render_rate=1.0)
    with torch.no_grad():
        for parameter in given.student.render.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite at step 1; lower render_rate"):
        distill_stage(given, "render")


def test_damaged_state_is_refused_with_the_remedy(teacher, tmp_path):
    (tmp_path / "text.state.pt").write_bytes(b"no state")
    with pytest.raises(TrainingError, match=r"text.state.pt is damaged \(.*\); remove it"):
        distill_stage(settings(teacher), "text", tmp_path)


def test_stages_of_other_outputs_are_refused(teacher, make_checkpoint):
    other = load_checkpoint(make_checkpoint("other", render=StageConfig("upsample", {"channels": [12, 8]})))
    with pytest.raises(UsageError, match="render stages of tiny and tiny differ in noises"):
        distill_stage(DistillOptions(teacher, other, SHORT, CAPTIONS), "render")


def test_a_batch_of_conditions_blends_as_the_runtime_blends_one():
    generator = torch.Generator().manual_seed(3)
    pool = torch.rand(5, 4)
    captions, blend = CaptionConditions(pool, 2, 6, generator), Blend(6)
    blend.retarget(captions.target[:1].numpy())
    np.testing.assert_allclose(captions.advance(3)[:, :1].numpy()[-1], blend.advance(), rtol=1e-6)
    captions.change(torch.tensor([True, False]))
    blend.retarget(captions.target[:1].numpy())
    captions.switching[:] = False
    for condition in captions.advance(8):
        np.testing.assert_allclose(condition[:1].numpy(), blend.advance(), rtol=1e-5)


def test_half_of_the_streams_change_their_caption(monkeypatch):
    monkeypatch.setattr(streams_module, "SWITCH_RATE", 0.5)
    captions = CaptionConditions(torch.eye(50), 20, 1, torch.Generator().manual_seed(0))
    made = captions.advance(20)
    assert (made[:, :10] == made[:1, :10]).all() and (made[0, 10:] != made[-1, 10:]).any(1).all()


def test_batches_draw_what_the_contract_says(teacher):
    draws = BatchDraws(4000, torch.Generator().manual_seed(0))
    noises = draws.noises(teacher.specs["motion"].noises, "step")
    states = draws.start(teacher.specs["motion"])
    assert {k: v.shape for k, v in noises.items()} == {"noise.step": (4000, 2)}
    assert abs(float(states["state.h0"].std()) - 1) < 0.02 and states["state.h0"].shape == (4000, 8)


def test_shared_states_are_those_of_one_name_and_shape(make_checkpoint):
    fed = {"cell": "gru", "feedback": True}
    theirs = load_checkpoint(make_checkpoint(motion=StageConfig("recurrent", {**fed, "hidden": 12})))
    mine = load_checkpoint(make_checkpoint("mine", motion=StageConfig("recurrent", {**fed, "hidden": 8})))
    specs = theirs.specs["motion"], mine.specs["motion"], theirs.specs["render"]
    student = copy.deepcopy(mine.motion).requires_grad_(True)
    options = Distill(motion_batch=4, length=5)
    trainer = MotionTrainer(theirs.motion, student, specs, torch.rand(8, 6), 6, options, 0, torch.device("cpu"))
    assert [s.name for s in trainer.shared] == ["motion"]
    trainer.step(1.0)
    assert torch.equal(trainer.theirs["state.motion"], trainer.mine["state.motion"])


def test_features_are_compared_where_both_networks_have_them(teacher, make_checkpoint):
    other = StageConfig("upsample", {"channels": [8, 8], "noise_size": 3})
    smaller = load_checkpoint(make_checkpoint("smaller", render=other))
    inputs = torch.rand(2, 5), torch.rand(2, 6), torch.rand(2, 3)
    found = [image_modules(c.render, inputs) for c in (teacher, smaller)]
    names = alike(*found)
    assert [found[0][n][1:] for n in names] == [(8, 8), (16, 16)] and all(found[0][n][0] > 3 for n in names)


def test_pixels_near_edges_count_more():
    frames = torch.zeros(1, 3, 32, 32)
    frames[..., 16:] = 1.0
    weights = near_edges(frames)[0, 0]
    assert weights[0, 15] == 5.0 and weights[0, 0] == weights[0, 31] == 1.0


def test_what_captions_change_counts_as_much_however_small_it_is():
    x, y = torch.zeros(2, 1, 3, 32, 32)
    y[..., :2, :16] = 0.8  # a 32nd of the frame
    assert contrast(x, y, x, y) == 0
    halfway = 0.5 * (x + y)
    np.testing.assert_allclose(float(contrast(halfway, halfway, x, y)), 0.4, rtol=1e-5)
    elsewhere = torch.ones_like(x)
    elsewhere[..., :2, :16] = 0
    np.testing.assert_allclose(float(contrast(elsewhere, y, x, y)), 0, atol=1e-6)
    np.testing.assert_allclose(float(contrast(x, x, torch.zeros_like(x), torch.zeros_like(x))), 0)


def test_contrasted_conditions_differ_in_one_group_that_the_teacher_draws():
    sizes = (3, 1, 2, 4)
    groups = Groups(sizes, torch.device("cpu")).those_that(lambda pair: bool((pair[0, 4:] != pair[1, 4:]).any()))
    conditions = torch.rand(400, 10)
    one, other = groups.apart(conditions, torch.Generator().manual_seed(0))
    named = set()
    for row, a, b in zip(conditions, one, other):
        changed = {g for g, part in enumerate((a != b).split(sizes)) if part.any()}
        assert len(changed) == 1 and changed <= {2, 3}
        for g, (was, x, y) in enumerate(zip(row.split(sizes), a.split(sizes), b.split(sizes))):
            if g in changed:
                assert sorted(x.tolist()) == sorted(y.tolist()) == [0] * (sizes[g] - 1) + [1]
                named.add((g, int(x.argmax())))
            else:
                assert torch.equal(x, was) and torch.equal(y, was)
    assert named == {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (3, 3)}
    assert Groups(sizes, torch.device("cpu")).those_that(lambda _: False) is None


def render_trainer(teacher: Checkpoint, student: torch.nn.Module, groups=None, **changes: object) -> RenderTrainer:
    options = Distill(perceptual=0.0, render_batch=8, length=8, **changes)
    modules, specs = (teacher.motion, teacher.render), (teacher.specs["motion"], teacher.specs["render"])
    pool, device = torch.rand(8, 6).softmax(1), torch.device("cpu")
    return RenderTrainer(modules, student, specs, pool, 6, options, 0, device, groups)


def test_half_of_the_pairs_are_one_moment_as_two_captions_show_it(teacher):
    trainer = render_trainer(teacher, fresh(teacher).render, groups=(2, 4))
    played = trainer._play(4, trainer.generator)
    motion, condition, noise = trainer._draw_pairs(played, 4, trainer.generator)
    first, second = zip(*(t.chunk(2) for t in (motion, condition, noise)))
    assert torch.equal(first[2], second[2])
    assert (first[0][:2] != second[0][:2]).any(1).all() and torch.equal(first[0][2:], second[0][2:])
    assert (first[1][2:] != second[1][2:]).any(1).all()


def test_a_single_pair_of_frames_is_one_of_moments(teacher):
    _, log = distill_stage(settings(teacher, render_batch=2, render_steps=2), "render")
    assert "contrast" not in log[-1] and log[-1]["contrast_error"] > 0


def test_layers_round_at_the_end_of_a_quantization_aware_training(teacher):
    student = copy.deepcopy(teacher.render).requires_grad_(True)
    trainer = render_trainer(teacher, student, quantization_aware=0.5)
    trainer.step(0.4)
    assert trainer.rounding is None and trainer.losses["pixel"] < 1e-6
    trainer.set_rate(0.0)
    trainer.step(0.5)
    assert trainer.rounding.layers and trainer.losses["pixel"] > 1e-4


def test_exchanged_words_are_such_as_stand_beside_that_neighbour():
    import random

    neighbours = Neighbours(["a red shirt", "a blue shirt", "one green hat"])
    made = {tuple(neighbours.exchange(["a ", "red ", "shirt"], 0.5, random.Random(i))) for i in range(200)}
    assert {words[1] for words in made} == {"red ", "blue "} and {words[0] for words in made} == {"a "}
    assert {words[2] for words in made} == {"shirt"}


def test_varied_captions_lose_words_or_characters_but_never_all():
    import random

    chooser = random.Random(0)
    english = {vary("a tall person is dancing", chooser) for _ in range(50)}
    chinese = {vary("一个人正在打篮球", chooser) for _ in range(50)}
    assert all(set(c.split()) <= set("a tall person is dancing".split()) and c.split() for c in english)
    assert len(english) > 5 and len(chinese) > 5 and all(c and set(c) <= set("一个人正在打篮球") for c in chinese)
