from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.checkpoint.checkpoint import load_checkpoint
from t2v_export.compress.fake_quant import quantize_aware
from t2v_export.graph.from_torch import stage_to_onnx
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.qdq import quantize
from t2v_export.recipe import Quantize

OPTIONS = Quantize(method="minmax", keep_first=False, keep_last=False, bias_correction=False)


class Net(nn.Module):
    spec = StageSpec("motion", (TensorSpec("x", (1, 16)),), (TensorSpec("y", (1, 8)),))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 8)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.last(self.relu(self.middle(self.relu(self.first(x)))))


def spread_net() -> Net:
    """A net in which weights of a unit that is never active are so large that the others' are left few levels."""
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.first.weight[0], net.first.bias[0] = 0, -1
        net.middle.weight[:, 0] = 8
    return net


def inputs(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def int8_error(net: Net, wanted: Net) -> float:
    """Root mean square of what the net's `int8-u8` graph is off from another net's outputs, on other inputs."""
    model = stage_to_onnx(net.eval(), net.spec, 17)
    plan = make_plan(model, net.spec, OPTIONS)
    fed = [{"x": x[None].numpy()} for x in inputs(128, 1)]
    seen = observe(model, fed, *observed_tensors(model, plan))
    graph = quantize(model, net.spec, plan, seen, OPTIONS, "int8-u8").SerializeToString()
    with open_engine("onnxruntime", graph, net.spec, EngineOptions()) as engine:
        off = [engine.run({"x": x[None].numpy()})["y"] - wanted(x[None]).detach().numpy() for x in inputs(128, 2)]
    return float(np.sqrt(np.mean(np.square(off))))


def train(net: Net, teacher: Net, steps: int = 600) -> None:
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = inputs(64, 100 + step)
        loss = (net(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def test_training_with_rounding_loses_less_in_int8_than_training_without():
    teacher = spread_net()
    plain, aware = spread_net(), spread_net()
    train(plain.train(), teacher)
    with quantize_aware(aware.train(), keep_first=False, keep_last=False) as handle:
        assert handle.layers == ("first", "middle", "last")
        train(aware, teacher)
    assert int8_error(aware, teacher) < 0.6 * int8_error(plain, teacher)


def test_rounded_forward_is_what_the_int8_graph_computes():
    net = spread_net()
    before = int8_error(net, net)
    with quantize_aware(net.train(), keep_first=False, keep_last=False, percentile=100) as handle:
        net(inputs(128, 1))
        net.eval()
        assert set(handle.state_dict()) == {"first", "middle", "last"}
        rounded = net(inputs(128, 2)).detach()
    off = float((rounded - net(inputs(128, 2)).detach()).square().mean().sqrt())
    assert off == pytest.approx(before, rel=0.25)


def test_removal_restores_the_module_exactly():
    net = spread_net().train()
    names, x = list(net.state_dict()), inputs(4, 3)
    wanted = net(x)
    handle = quantize_aware(net)
    assert not torch.equal(net(x), wanted) and list(net.state_dict()) == names
    handle.remove()
    assert torch.equal(net(x), wanted) and all("forward" not in part.__dict__ for part in net.modules())
    assert net.training and not any(part._forward_hooks for part in net.modules())


def test_first_dense_and_last_layers_stay_in_float():
    assert quantize_aware(Net()).layers == ("middle",)
    assert quantize_aware(Net(), keep_first=False).layers == ("first", "middle")
    assert quantize_aware(Net(), keep_last=False).layers == ("middle", "last")


def test_layers_of_a_renderer_that_round_are_those_of_the_quantize_pass(make_checkpoint):
    checkpoint = load_checkpoint(make_checkpoint())
    spec = checkpoint.specs["render"]
    plan = make_plan(stage_to_onnx(checkpoint.render, spec, 17), spec, Quantize())
    with quantize_aware(checkpoint.render) as handle:
        kinds = [type(checkpoint.render.get_submodule(name)).__name__ for name in handle.layers]
        assert len(kinds) == len(plan.layers) > 1
        assert kinds.count("Conv2d") == sum(name.endswith("Conv") for name in plan.layers)
    assert not any(p.requires_grad for p in checkpoint.render.parameters()) and not checkpoint.render.training


def test_gradients_reach_float_weights_under_autocast():
    net = Net().train()
    with quantize_aware(net, keep_first=False, keep_last=False, signed=True), torch.autocast("cpu", torch.bfloat16):
        net(inputs(8, 0)).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_ranges_survive_a_stop():
    net = Net().train()
    first = quantize_aware(net)
    net(inputs(64, 0) * 3)
    state = first.state_dict()
    first.remove()
    again = quantize_aware(net.eval())
    again.load_state_dict(state)
    assert torch.equal(again.state_dict()["middle"], state["middle"])
    again.remove()
