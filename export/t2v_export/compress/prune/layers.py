"""A transformer encoder without its least useful layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2v_calibration.calibration_set import Feeds
from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.compress.prune.design import ENCODER, Design
from t2v_export.compress.prune.importance import BATCH, feed
from t2v_export.models.text import TransformersText


def prune_layers(checkpoint: Checkpoint, count: int, samples: Sequence[Feeds]) -> Checkpoint:
    """The checkpoint with `count` layers of its text encoder.

    Layers leave one by one: each time the layer without which the pooled text changes least on `samples`. So what Block
    Influence (Men et al., 2024) estimates is measured. Raises `UsageError` if the stage is not a transformers encoder,
    or its layers are not one list.
    """
    module = checkpoint.text
    if not isinstance(module, TransformersText):
        raise UsageError("text_layers: the text stage is not a transformers encoder; leave it at 0")
    name, layers = _layers(module)
    if count > len(layers):
        raise UsageError(f"text_layers is {count}, and the encoder has {len(layers)}; give at most that")
    if count == len(layers):
        return checkpoint
    kept = list(range(len(layers)))
    batches = [feed(module.spec, samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]
    wanted = _pooled(module, name, kept, batches)
    while len(kept) > count:
        trials = [[i for i in kept if i != out] for out in kept]
        kept = min(trials, key=lambda trial: float((_pooled(module, name, trial, batches) - wanted).square().mean()))
    design = Design("text", checkpoint.config, module)
    aliases = module.encoder.config.attribute_map  # what the config may call the number of layers
    names = {"num_hidden_layers", aliases.get("num_hidden_layers", "num_hidden_layers")}
    number = next(p for p in design.numbers() if p[0] == ENCODER and p[1] in names)
    made = design.build({number: count})
    made.load_state_dict(_renamed(module, name, kept))
    return with_stages(checkpoint, {"text": made}, {"text": design.stage_config({})})


def _layers(module: TransformersText) -> tuple[str, nn.ModuleList]:
    wanted = getattr(module.encoder.config, "num_hidden_layers", None)
    for name, part in module.encoder.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == wanted:
            return name, part
    raise UsageError("text_layers: the encoder's layers are not one list; leave it at 0")


def _pooled(module: TransformersText, name: str, kept: Sequence[int], batches: Sequence[Sequence[Tensor]]) -> Tensor:
    part = copy.copy(module)
    part._modules = dict(module._modules)
    part.encoder = copy.deepcopy(module.encoder)
    layers = part.encoder.get_submodule(name)
    parent, _, last = name.rpartition(".")
    setattr(part.encoder.get_submodule(parent), last, nn.ModuleList(layers[i] for i in kept))
    with torch.no_grad():
        return torch.cat([part.pooled(*batch) for batch in batches])


def _renamed(module: TransformersText, name: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """The weights of the layers kept, with new numbers, and all others."""
    pattern = re.compile(re.escape(f"encoder.{name}.") + r"(\d+)\.")
    places = {old: new for new, old in enumerate(kept)}
    state = {}
    for key, value in module.state_dict().items():
        match = pattern.match(key)
        if match is None:
            state[key] = value
        elif int(match[1]) in places:
            state[f"encoder.{name}.{places[int(match[1])]}." + key[match.end() :]] = value
    return state
