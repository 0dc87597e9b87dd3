from __future__ import annotations

import pytest
import torch
from torch import nn

from t2v_edge.errors import CheckpointError
from t2v_export.models import build_stage
from t2v_export.models.recurrent import GatedCell, MemoryCell, RecurrentMotion
from t2v_export.models.text import Pooling
from t2v_export.models.upsample import ToPixels, UpsampleRenderer

SIZES = {"condition_size": 4, "motion_size": 3, "height": 32, "width": 32}


@pytest.mark.parametrize(("mine", "theirs"), [(GatedCell, nn.GRUCell), (MemoryCell, nn.LSTMCell)])
def test_written_out_cells_compute_what_torch_cells_do(mine, theirs):
    torch.manual_seed(0)
    reference, cell = theirs(5, 7), mine(5, 7)
    cell.load_state_dict(reference.state_dict())
    x, states = torch.randn(3, 5), tuple(torch.randn(3, 7) for _ in range(cell.states))
    wanted = reference(x, states if cell.states == 2 else states[0])
    for made, expected in zip(cell.step(x, states), wanted if cell.states == 2 else (wanted,)):
        torch.testing.assert_close(made, expected)


def test_stacked_lstm_agrees_with_torch_lstm_over_time():
    torch.manual_seed(0)
    motion = RecurrentMotion(condition_size=4, motion_size=6, cell="lstm", hidden=6, layers=3, output="state").eval()
    reference = nn.LSTM(4, 6, 3)
    for layer, cell in enumerate(motion.cells):
        for name, weight in cell.named_parameters():
            getattr(reference, f"{name}_l{layer}").data.copy_(weight)
    x = torch.randn(5, 2, 4)
    wanted, _ = reference(x)
    states = tuple(torch.zeros(2, 6) for _ in motion.spec.states)
    assert len(states) == 6
    for step in range(5):
        made, *states = motion(x[step], *states)
        torch.testing.assert_close(made, wanted[step])


def test_category_noise_becomes_one_hot_and_each_value_is_as_likely():
    motion = RecurrentMotion(condition_size=1, motion_size=2, hidden=4, category=3, output="linear")
    seen = []
    motion.cells[0].step = lambda x, states: seen.append(x) or states  # type: ignore[method-assign]
    motion(torch.zeros(3000, 1), torch.rand(3000, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(3000, 4))
    code = seen[0][:, 1:]
    assert set(code.unique().tolist()) == {0.0, 1.0} and bool((code.sum(1) == 1).all())
    assert bool((code.mean(0) - 1 / 3).abs().max() < 0.03)  # 3 standard deviations of 3,000 draws


def test_feedback_hands_the_motion_back():
    motion = RecurrentMotion(condition_size=2, motion_size=3, hidden=4, feedback=True, output="tanh")
    made, _, back = motion(torch.ones(1, 2), torch.zeros(1, 4), torch.zeros(1, 3))
    assert torch.equal(made, back)
    again, _, _ = motion(torch.ones(1, 2), torch.zeros(1, 4), back)
    assert not torch.equal(made, again)


def test_stored_start_is_read_from_the_weights():
    motion = RecurrentMotion(condition_size=2, motion_size=3, hidden=2, start="stored")
    motion.start["h0"].data.copy_(torch.tensor([[0.5, -2.0]]))
    assert motion.spec.states[0].value == (0.5, -2.0)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_pooling_ignores_masked_tokens(kind):
    torch.manual_seed(0)
    pooling = Pooling(kind, 8, 3 if kind == "attention" else 1)
    states, mask = torch.randn(2, 6, 8), torch.tensor([[1, 1, 1, 0, 0, 0]]).repeat(2, 1)
    changed = states.clone()
    changed[:, 3:] = 100.0
    torch.testing.assert_close(pooling(states, mask), pooling(changed, mask))
    assert not torch.allclose(pooling(states, mask), pooling(changed, torch.ones(2, 6, dtype=torch.int64)))


@pytest.mark.parametrize("name", ["text-cnn", "text-gru"])
def test_text_encoders_ignore_padding(name):
    torch.manual_seed(0)
    module = build_stage("text", name, {"vocabulary": 20, "tokens": 6, "groups": [3, 1]}, **SIZES).eval()
    ids, mask = torch.randint(1, 20, (2, 6)), torch.tensor([[1, 1, 1, 0, 0, 0]]).repeat(2, 1)
    other = ids.clone()
    other[:, 3:] = 7
    torch.testing.assert_close(module(ids, mask), module(other, mask))
    torch.testing.assert_close(module(ids, mask)[:, :3].sum(1), torch.ones(2))
    assert not torch.allclose(module(ids, mask), module(ids.flip(1), mask))


@pytest.mark.parametrize(("size", "stem"), [((8, 8), 4), ((64, 64), 1), ((64, 32), 4), ((32, 64), 8)])
def test_upsample_renderer_makes_the_size_asked_for(size, stem):
    renderer = UpsampleRenderer(
        condition_size=2, motion_size=3, height=size[0], width=size[1], channels=[4], stem=stem, pixel_range="0..1"
    )
    image = renderer(torch.randn(2, 3), torch.randn(2, 2)).detach()
    assert image.shape == (2, 3, *size) and 0 <= float(image.min()) and float(image.max()) <= 1


@pytest.mark.parametrize("pixel_range", ["-1..1", "0..1"])
def test_clipped_pixels_follow_the_smooth_ones_and_learn_beyond_the_ends(pixel_range):
    smooth, clipped = (ToPixels(1, pixel_range, 1, squash=s) for s in ("smooth", "clip"))
    for ending in (smooth, clipped):
        nn.init.ones_(ending.conv.weight)
        nn.init.zeros_(ending.conv.bias)
    near = torch.linspace(-0.3, 0.3, 7)[None, None, None]
    torch.testing.assert_close(clipped(near), smooth(near), atol=0.01, rtol=0)
    far = torch.tensor([-9.0, 9.0])[None, None, None].requires_grad_()
    ends = clipped(far)
    assert ends[0, 0, 0].tolist() == [-1.0 if pixel_range == "-1..1" else 0.0, 1.0]
    ends.sum().backward()
    assert (far.grad > 0).all()
    with torch.no_grad():
        torch.testing.assert_close(clipped.eval()(far), ends)
    with pytest.raises(CheckpointError, match="squash 'hard' is not one of smooth, clip"):
        build_stage(
            "render", "upsample", {"channels": [4], "squash": "hard"},
            condition_size=2, motion_size=3, height=8, width=8,
        )  # fmt: skip


@pytest.mark.parametrize("size", [(24, 24), (32, 50), (4, 4)])
def test_sizes_that_doubling_cannot_reach_are_refused(size):
    with pytest.raises(CheckpointError, match="power-of-two"):
        build_stage("render", "upsample", {}, condition_size=2, motion_size=3, height=size[0], width=size[1])
