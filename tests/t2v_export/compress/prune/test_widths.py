"""Units that nothing reads may leave a module without a trace: for every class and every width."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2v_edge.spec import STAGES, StateSpec
from t2v_export.checkpoint.config import CheckpointConfig, StageConfig
from t2v_export.compress.prune.cut import choose_units, cut, keep
from t2v_export.compress.prune.design import Design, find_width_options
from t2v_export.compress.prune.trace import trace_stage
from t2v_export.models import build_stage
from t2v_export.models.contract import motion_spec, render_spec

EXAMPLES = Path(__file__).parents[4] / "examples" / "custom_stages"
CONDITION, MOTION, SIDE = 6, 75, 32
LAYOUT = {
    "joints": [0, 20],
    "prop": 64,
    "presence": [70, 5],
    "lift": 0.9,
    "scale": 2.0,
    "bones": [[0, 1], [1, 2], [2, 3]],
    "camera": {"distance": 5.5, "height": 1.5, "pitch": 0.1, "focal": 4.6},
}
POSE = {
    "channels": [8, 12, 8, 6], "stem_width": 10, "look_width": 4, "look": [[1, 3], [4, 2]], "layout": LAYOUT,
    "maps": [8, 16], "depth_maps": [8], "bias_levels": [8, 16],
}  # fmt: skip


class SingleGru(nn.Module):
    """torch's own recurrent layers, as a user would take them."""

    def __init__(self, *, condition_size: int, motion_size: int, hidden: int = 6, inner: int = 5, **_: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(condition_size, inner)
        self.gru = nn.GRU(inner, hidden, num_layers=2)
        self.leave = nn.Linear(hidden, motion_size)
        self.spec = motion_spec(
            condition_size, motion_size, states=[StateSpec("lower", (1, hidden)), StateSpec("upper", (1, hidden))]
        )

    def forward(self, condition: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        made, states = self.gru(torch.tanh(self.enter(condition))[None], torch.stack([lower, upper]))
        return self.leave(made[0]), states[0], states[1]


class SingleLstm(nn.Module):
    def __init__(self, *, condition_size: int, motion_size: int, hidden: int = 6, **_: Any) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(condition_size, hidden)
        self.leave = nn.Linear(hidden, motion_size)
        self.spec = motion_spec(
            condition_size, motion_size, states=[StateSpec("h", (1, hidden)), StateSpec("c", (1, hidden))]
        )

    def forward(self, condition: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        h, c = self.cell(condition, (h, c))
        return self.leave(h), h, c


class UserRenderer(nn.Module):
    """Depthwise and strided convolutions, channel attention, instance norm, a learned start, skips by concatenation."""

    pixel_range = "-1..1"

    def __init__(
        self, *, condition_size: int, motion_size: int, height: int, width: int, first: int = 8, second: int = 6,
        squeeze: int = 4, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spec = render_spec(condition_size, motion_size, height, width)
        self.start = nn.Parameter(torch.randn(1, first, 8, 8))
        self.style = nn.Linear(condition_size + motion_size, first)
        self.depth = nn.Conv2d(first, first, 3, padding=1, groups=first)
        self.point = nn.Conv2d(first, second, 1)
        self.norm = nn.InstanceNorm2d(second, affine=True)
        self.down = nn.Conv2d(second, second, 3, stride=2, padding=1)
        self.attend = nn.Sequential(nn.Linear(second, squeeze), nn.ReLU(), nn.Linear(squeeze, second))
        self.up = nn.ConvTranspose2d(2 * second, 4 * second, 4, stride=2, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(second + first, 3, 3, padding=1)

    def forward(self, motion: Tensor, condition: Tensor) -> Tensor:
        style = self.style(torch.cat([motion, condition], 1))
        x = self.start * style[:, :, None, None]
        y = torch.relu(self.norm(self.point(self.depth(x))))
        down = nn.functional.interpolate(self.down(y), scale_factor=2.0, mode="bilinear")
        weight = torch.sigmoid(self.attend(y.mean((2, 3))))
        y = torch.cat([y * weight[:, :, None, None], down], 1)
        up = self.shuffle(self.up(y))
        x = nn.functional.interpolate(x, scale_factor=4.0)
        return torch.tanh(self.last(torch.cat([up, x], 1)))


def load_example(name: str) -> Any:
    """The module of the worked example for user stages."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_weights(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim:
            torch.nn.init.uniform_(tensor, 0.5, 1.5) if "running_var" in name else torch.nn.init.normal_(tensor, 0, 0.3)


def make_design(stage: str, found: Any, options: dict[str, Any], motion_size: int = MOTION) -> Design:
    torch.manual_seed(0)
    sizes = {"condition_size": CONDITION, "motion_size": motion_size, "height": SIDE, "width": SIDE}
    if isinstance(found, str):
        module = build_stage(stage, found, options, **sizes)
    else:
        module = found(**sizes, **({"folder": None} if stage == "text" else {}), **options)
    name = found if isinstance(found, str) else "own:Class"
    random_weights(module)
    module = module.eval().requires_grad_(False)
    stages = dict.fromkeys(STAGES, StageConfig(name, options))
    return Design(stage, CheckpointConfig("tiny", SIDE, SIDE, 16, CONDITION, motion_size, stages), module)


def inputs_of(module: Any, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for t in module.spec.inputs:
        shape = (batch, *t.shape[1:])
        if t.dtype == "int64":
            ids = torch.randint(1, 9, shape, generator=generator)
            made.append(ids if t.name == "input_ids" else (ids > 2).long().index_fill_(1, torch.tensor([0]), 1))
        else:
            made.append(torch.rand(shape, generator=generator))
    return made


def outputs_of(module: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        made = module(*inputs)
    return made if isinstance(made, tuple) else (made,)


MOCOGAN, TFGAN = load_example("mocogan"), load_example("tfgan")
FOUR = {"channels[0]", "channels[1]", "channels[2]", "channels[3]"}
WORDS = {"vocabulary": 13, "tokens": 7, "embedding": 8}
MOVES = {"hidden": 12, "action_size": 4, "choices": 3, "embedding": 6}
LSTM = {"cell": "lstm", "hidden": 6, "layers": 3, "feedback": True, "content": 3, "category": 4, "output": "tanh"}
Case = tuple[str, Any, dict[str, Any], set[str]]
CASES: dict[str, Case] = {
    "upsample": ("render", "upsample", {"channels": [12, 8, 6], "noise_size": 3}, FOUR),
    "upsample, residual and shuffled": (
        "render", "upsample", {"channels": [8, 6, 4, 4], "upsample": "pixel_shuffle", "residual": True}, FOUR,
    ),
    "upsample, transposed without norm": (
        "render", "upsample", {"channels": [8, 6, 4, 4], "upsample": "transpose", "norm": False}, FOUR,
    ),
    "pose": ("render", "pose", POSE, {*FOUR, "stem_width", "look_width"}),
    "pose, residual and shuffled": (
        "render", "pose", {**POSE, "residual": True, "upsample": "pixel_shuffle"}, {*FOUR, "stem_width", "look_width"},
    ),
    "gru": ("motion", "recurrent", {"hidden": 8, "noise": 2, "start": "stored"}, {"hidden"}),
    "lstm stack with feedback": ("motion", "recurrent", LSTM, {"hidden"}),
    "lstm stack with stored start": ("motion", "recurrent", {**LSTM, "feedback": False, "start": "stored"}, {"hidden"}),
    "gru whose state is the motion": ("motion", "recurrent", {"hidden": MOTION, "output": "state"}, set()),
    "skeletal": ("motion", "skeletal", {**MOVES, "layers": 2}, {"hidden", "embedding"}),
    "skeletal lstm": ("motion", "skeletal", {**MOVES, "cell": "lstm"}, {"hidden", "embedding"}),
    "text-cnn": ("text", "text-cnn", {**WORDS, "filters": 5, "groups": [4, 2]}, {"embedding", "filters"}),
    "text-gru": ("text", "text-gru", {**WORDS, "hidden": 6}, {"embedding", "hidden"}),
    "text-gru with an LSTM": ("text", "text-gru", {**WORDS, "hidden": 6, "cell": "lstm"}, {"embedding", "hidden"}),
    "mocogan's generator": ("render", MOCOGAN.ConvTransposeGenerator, {"channels": 4}, {"channels"}),
    "mocogan's motion": ("motion", MOCOGAN.CodeMotion, {}, set()),
    "tfgan's generator": ("render", TFGAN.ResidualGenerator, {"channels": 8}, {"channels"}),
    "tfgan's text": ("text", TFGAN.TextCNN, {"vocabulary": 13}, {"features"}),
    "torch's GRU": ("motion", SingleGru, {}, {"hidden", "inner"}),
    "torch's LSTM cell": ("motion", SingleLstm, {}, {"hidden"}),
    "a user's renderer": ("render", UserRenderer, {}, {"first", "second", "squeeze"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_widths_are_found_and_nothing_else_is(name):
    stage, found, options, wanted = CASES[name]
    design = make_design(stage, found, options)
    widths = find_width_options(design, trace_stage(design.module, design.module.spec).families)
    assert {width.name for width in widths} == wanted


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[3]])
def test_units_that_nothing_reads_leave_without_a_trace(name):
    stage, found, options, _ = CASES[name]
    design = make_design(stage, found, options)
    original = copy.deepcopy(design.module.state_dict())
    trace = trace_stage(design.module, design.module.spec)
    widths = find_width_options(design, trace.families)
    values = [max(1, width.value // 2 + 1) for width in widths]
    # units in random order, so that what is kept is no run of neighbours
    generator = torch.Generator().manual_seed(2)
    scores = [[torch.rand(family.size, generator=generator) for family, _ in width.families] for width in widths]
    removed = choose_units(widths, scores, values)
    silenced = copy.deepcopy(design.module)
    for (weight, axis), indices in removed.items():
        if (weight, axis) in trace.readers:
            silenced.state_dict()[weight].index_fill_(axis, indices, 0.0)
    made, config = cut(design, widths, values, removed)

    inputs = inputs_of(design.module)
    before = outputs_of(silenced, inputs)
    names = [t.name for t in design.module.spec.inputs]
    after = outputs_of(made, [keep(n, x, removed) for n, x in zip(names, inputs)])
    states = {s.output: s.input for s in design.module.spec.states}
    for spec, old, new in zip(design.module.spec.outputs, before, after):
        wanted = keep(states.get(spec.name, spec.name), old, removed)
        torch.testing.assert_close(new, wanted, atol=1e-5, rtol=1e-5)
    loud = outputs_of(design.module, inputs)[0]
    assert float((loud - before[0]).abs().max()) > 1e-3  # the units did something before
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in design.module.parameters())
    assert all(torch.equal(v, original[k]) for k, v in design.module.state_dict().items())
    assert config.options != design.config.stages[stage].options


def test_channels_that_are_always_zero_are_found_by_what_makes_them():
    design = make_design("render", "upsample", {"channels": [8, 6, 4, 4], "residual": True})
    block = design.module.blocks[0]
    for index in (1, 4):  # of 6: what the norm, the second convolution and the skip give there is 0
        for part in (block.norm, block.second[0], block.second[1], block.skip[0]):
            for tensor in (part.weight, part.bias) if part.bias is not None else (part.weight,):
                tensor[index] = 0
        block.second[1].running_mean[index] = 0
    trace = trace_stage(design.module, design.module.spec)
    widths = find_width_options(design, trace.families)
    (width,) = (k for k in widths if k.name == "channels[1]")
    scores = [torch.ones(6), torch.ones(6)]  # of the first convolution's channels, and of the sum's
    for score in scores:
        score[[1, 4]] = 0
    removed = choose_units([width], [scores], [4])
    made, config = cut(design, [width], [4], removed)
    inputs = inputs_of(design.module)
    torch.testing.assert_close(made(*inputs), design.module(*inputs), atol=1e-6, rtol=1e-5)
    assert config.options["channels"] == [8, 4, 4, 4]


def test_gates_leave_together_in_a_recurrent_cell():
    design = make_design("motion", "recurrent", {"cell": "lstm", "hidden": 4})
    trace = trace_stage(design.module, design.module.spec)
    (width,) = find_width_options(design, trace.families)
    removed = choose_units([width], [[torch.tensor([1.0, 1.0, 0.0, 1.0])]], [3])
    assert removed["cells.0.weight_ih", 0].tolist() == [2, 6, 10, 14]
    assert removed["cells.0.weight_hh", 1].tolist() == removed["project.weight", 1].tolist() == [2]
    assert removed["state.h0", 1].tolist() == removed["state.c0", 1].tolist() == [2]


def test_a_stem_loses_the_flat_block_of_a_channel_and_a_concatenation_its_own_part():
    design = make_design("render", "pose", POSE)
    trace = trace_stage(design.module, design.module.spec)
    widths = {width.name: width for width in find_width_options(design, trace.families)}
    score = torch.ones(8)
    score[3] = 0
    removed = choose_units([widths["channels[0]"]], [[score]], [7])
    assert removed["stem.linear.weight", 0].tolist() == list(range(48, 64))
    score = torch.ones(4)
    score[1] = 0
    removed = choose_units([widths["look_width"]], [[score]], [3])
    assert removed["mix.0.weight", 1].tolist() == [MOTION + 1]  # behind the motion, which stays whole
