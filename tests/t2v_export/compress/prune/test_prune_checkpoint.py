from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
from t2v_export.checkpoint.config import StageConfig
from t2v_export.checkpoint.cost import example_inputs
from t2v_export.compress.prune import prune_checkpoint
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.recipe import Prune
from tests.t2v_export.checkpoint_cost import checkpoint_cost

EXAMPLES = Path(__file__).parents[4] / "examples" / "custom_stages"
BASE = Prune(round_to=2, samples=4, captions=("en",))


def pruning(**changes):
    return dataclasses.replace(BASE, **changes)


def outputs_of(checkpoint):
    found = []
    for module in checkpoint.modules.values():
        made = module(*example_inputs(module.spec))
        found += made if isinstance(made, tuple) else [made]
    return found


@pytest.fixture
def checkpoint(make_checkpoint):
    text = {"vocabulary": 13, "tokens": 12, "embedding": 16, "filters": 16, "groups": [4, 2]}
    return load_checkpoint(
        make_checkpoint(
            text=StageConfig("text-cnn", text),
            motion=StageConfig("recurrent", {"cell": "lstm", "hidden": 16, "layers": 2, "noise": 2, "start": "stored"}),
            render=StageConfig("upsample", {"channels": [24, 16, 12], "noise_size": 3}),
        )
    )


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "activation"])
def test_each_stage_keeps_its_share_and_the_input_is_untouched(checkpoint, criterion):
    weights = {s: {k: v.clone() for k, v in m.state_dict().items()} for s, m in checkpoint.modules.items()}
    options = pruning(criterion=criterion, text_keep=0.6, motion_keep=0.5, render_keep=0.3)
    made = prune_checkpoint(checkpoint, options)
    before, after = checkpoint_cost(checkpoint), checkpoint_cost(made)
    for stage, share in (("text", 0.6), ("motion", 0.5), ("render", 0.3)):
        assert 0.6 * share < after.macs[stage] / before.macs[stage] <= share  # rounding leaves some unused
        for name, value in checkpoint.modules[stage].state_dict().items():
            assert torch.equal(value, weights[stage][name])
    assert made.sha256 != checkpoint.sha256
    widths = [made.config.stages["motion"].options["hidden"], *made.config.stages["render"].options["channels"]]
    assert all(width % 2 == 0 for width in widths)


def test_what_is_saved_loads_with_the_same_function(checkpoint, tmp_path):
    made = prune_checkpoint(checkpoint, pruning(text_keep=0.6, motion_keep=0.5, render_keep=0.5))
    save_loaded(made, tmp_path / "small", dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "small")
    assert loaded.config == made.config and loaded.card == made.card
    for mine, theirs in zip(outputs_of(made), outputs_of(loaded)):
        assert torch.equal(mine, theirs)
    assert made.specs == loaded.specs  # the stored start of each state was cut with it


def test_a_pruned_checkpoint_exports(checkpoint, cpu, tmp_path):
    save_loaded(prune_checkpoint(checkpoint, pruning(motion_keep=0.5, render_keep=0.4)), tmp_path / "small")
    options = ExportOptions(variants=("fp32",), measure=False)
    exported = export_checkpoint(tmp_path / "small", tmp_path / "bundle", cpu, options)
    assert all(difference.max_rel < 1e-5 for difference in exported.differences["fp32"].values())


def test_a_seed_gives_the_same_checkpoint(checkpoint):
    options = pruning(criterion="taylor", render_keep=0.4)
    assert prune_checkpoint(checkpoint, options, 3).sha256 == prune_checkpoint(checkpoint, options, 3).sha256


@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_one_budget_is_shared_out_among_the_stages(checkpoint, budget):
    before = checkpoint_cost(checkpoint)
    after = checkpoint_cost(prune_checkpoint(checkpoint, pruning(total_keep=0.4, budget=budget)))
    old, new = (
        (before.macs_per_second, after.macs_per_second)
        if budget == "macs"
        else (before.all_parameters, after.all_parameters)
    )
    assert 0.3 < new / old <= 0.4
    assert after.parameters["render"] < before.parameters["render"]


def test_stages_that_are_not_named_stay(checkpoint):
    made = prune_checkpoint(checkpoint, pruning(stages=("render",), motion_keep=0.3, render_keep=0.4))
    assert made.motion is checkpoint.motion and made.text is checkpoint.text


def test_the_units_that_matter_least_leave(checkpoint):
    """Channels made small in what they give must be those that go, by each criterion."""
    quiet = [1, 5, 6, 11, 12, 13, 20, 22]
    weight = checkpoint.render.stem.linear.weight.data.view(24, 16, -1)
    norm = checkpoint.render.stem.norm
    for part in (weight, checkpoint.render.stem.linear.bias.data.view(24, 16), norm.bias.data.view(24, 16)):
        part[quiet] *= 1e-3
    norm.weight.data.view(24, 16)[quiet] *= 1e-3
    reader = checkpoint.render.blocks[0].up[1].weight
    wanted = reader[:, [c for c in range(24) if c not in quiet]]
    for criterion in ("magnitude", "taylor", "activation"):
        options = pruning(criterion=criterion, widths={"render": {"channels": [16, 16, 12]}})
        made = prune_checkpoint(checkpoint, options)
        assert torch.equal(made.render.blocks[0].up[1].weight, wanted), criterion


def test_widths_asked_for_are_those_made(checkpoint):
    made = prune_checkpoint(checkpoint, pruning(widths={"render": {"channels": [20, 16, 6]}, "motion": {"hidden": 10}}))
    assert made.config.stages["render"].options["channels"] == [20, 16, 6]
    assert made.config.stages["motion"].options["hidden"] == 10


def test_no_width_falls_under_the_floor(checkpoint):
    low = prune_checkpoint(checkpoint, pruning(render_keep=0.3)).config.stages["render"].options["channels"]
    made = prune_checkpoint(checkpoint, pruning(render_keep=0.3, floor=0.5)).config.stages["render"].options["channels"]
    assert all(width >= old / 2 for width, old in zip(made, [24, 16, 12]))
    assert any(width < old / 2 for width, old in zip(low, [24, 16, 12]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"render_keep": 0.001}, "the smallest that widths of 2 allow is .*lower round_to"),
        ({"render_keep": 0.2, "floor": 0.9}, "lower round_to or floor"),
        ({"widths": {"render": {"channels": [99, 16, 12]}}}, r"channels\[0\] is 99, expected 1 to 24"),
        ({"widths": {"render": {"stem": 2}}}, "stem is not a width that can be pruned; those are channels"),
        ({"widths": {"renderer": {"channels": [4]}}}, "'renderer' is not a stage"),
        ({"text_layers": 1}, "not a transformers encoder"),
    ],
)
def test_errors_say_what_to_do(checkpoint, changes, message):
    with pytest.raises(UsageError, match=message):
        prune_checkpoint(checkpoint, pruning(**changes))


def test_a_motion_that_is_the_state_cannot_be_pruned(make_checkpoint):
    options = {"hidden": 5, "output": "state"}
    checkpoint = load_checkpoint(make_checkpoint(motion=StageConfig("recurrent", options)))
    with pytest.raises(UsageError, match=r"nothing of motion \(recurrent\) can be pruned"):
        prune_checkpoint(checkpoint, pruning(motion_keep=0.5))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("mocogan", {"render": StageConfig("mocogan:ConvTransposeGenerator", {"channels": 8})}),
        (
            "tfgan",
            {
                "text": StageConfig("tfgan:TextCNN", {"vocabulary": 13, "tokens": 12}),
                "render": StageConfig("tfgan:ResidualGenerator", {"channels": 16}),
            },
        ),
    ],
)
def test_user_classes_are_pruned_saved_with_their_code_and_exported(make_checkpoint, cpu, tmp_path, name, stages):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_bytes((EXAMPLES / f"{name}.py").read_bytes())
    folder = make_checkpoint(code=tmp_path / "code", **stages)
    checkpoint = load_checkpoint(folder, allow_code=True)
    shares = {f"{stage}_keep": 0.6 for stage in stages}
    made = prune_checkpoint(checkpoint, pruning(**shares))
    save_loaded(made, tmp_path / "small")
    loaded = load_checkpoint(tmp_path / "small", allow_code=True)
    for stage in stages:
        assert checkpoint_cost(loaded).macs[stage] <= 0.6 * checkpoint_cost(checkpoint).macs[stage]
    options = ExportOptions(variants=("fp32",), measure=False, allow_code=True)
    exported = export_checkpoint(tmp_path / "small", tmp_path / "bundle", cpu, options)
    assert set(exported.differences["fp32"]) == set(STAGES)


LIAR = """
import torch
from torch import nn
from t2v_export.models.contract import render_spec


class Render(nn.Module):
    def __init__(self, *, condition_size, motion_size, height, width, channels=8, **_):
        super().__init__()
        self.spec = render_spec(condition_size, motion_size, height, width)
        self.channels, self.size = channels, (height, width)
        self.inner = nn.Linear(condition_size + motion_size, channels)
        self.pixels = nn.Linear(channels, 3)

    def forward(self, motion, condition):
        x = torch.relu(self.inner(torch.cat([motion, condition], 1))) * self.channels
        return torch.tanh(self.pixels(x))[:, :, None, None].expand(-1, -1, *self.size)
"""


def test_a_class_that_computes_with_its_width_is_refused(make_checkpoint, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "liar.py").write_text(LIAR)
    folder = make_checkpoint(code=tmp_path / "code", render=StageConfig("liar:Render", {}))
    checkpoint = load_checkpoint(folder, allow_code=True)
    with pytest.raises(UsageError, match="frame changes when unused units are taken out"):
        prune_checkpoint(checkpoint, pruning(render_keep=0.5))
