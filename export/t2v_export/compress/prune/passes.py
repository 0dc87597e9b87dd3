"""The prune pass: a checkpoint to a smaller one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from t2v_calibration.calibration_set import CalibrationOptions, Feeds, collect
from t2v_calibration.captions import load_captions
from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.checkpoint.config import StageConfig
from t2v_export.checkpoint.cost import count_macs, count_parameters
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.compress.prune.cut import check_cut, choose_units, cut
from t2v_export.compress.prune.design import Design, find_width_options
from t2v_export.compress.prune.importance import score_families
from t2v_export.compress.prune.labels import TracedProduct
from t2v_export.compress.prune.layers import prune_layers
from t2v_export.compress.prune.plan import Widths, asked_widths, choose_widths
from t2v_export.compress.prune.positions import prune_positions
from t2v_export.compress.prune.trace import Trace, trace_stage
from t2v_export.compress.prune.vocabulary import prune_vocabulary
from t2v_export.graph.from_torch import run_torch
from t2v_export.models.contract import spec_of
from t2v_export.recipe import Prune

ROUNDS = 4  # of planning, where a plan's own count of multiply-accumulates differs from what the cut module needs
CHECKED = 2  # samples on which a cut is proved


@dataclass(frozen=True, eq=False)
class _Stage:
    """A stage that can be made narrower, and all that is known of it."""

    design: Design
    trace: Trace
    widths: Widths
    samples: Sequence[Feeds]


def prune_checkpoint(checkpoint: Checkpoint, options: Prune, seed: int = 0) -> Checkpoint:
    """A smaller checkpoint, as `options` ask. The given one is not changed.

    Vocabulary, unused positions and encoder layers go first. Then widths: those that are named, the stages' shares, and
    the budget of all stages. The same seed gives the same checkpoint. Raises `UsageError` if a stage cannot be pruned
    as asked, with the reason and the remedy.
    """
    captions = [caption for name in options.captions for caption in load_captions(name)]
    made = checkpoint
    if options.vocabulary and "text" in options.stages:
        made = prune_vocabulary(made, captions, options.vocabulary_near, options.vocabulary_size)
    if "text" in options.stages:
        made = prune_positions(made, captions)
    shares = {stage: getattr(options, f"{stage}_keep") for stage in STAGES if stage in options.stages}
    wanted = {stage: share for stage, share in shares.items() if share < 1}
    if not wanted and not options.text_layers and not options.widths and options.total_keep == 1:
        return made
    samples = _samples(made, captions, options, seed)
    if options.text_layers and "text" in options.stages:
        made = prune_layers(made, options.text_layers, samples["text"])
    for stage, asked in options.widths.items():
        if stage not in options.stages:
            raise UsageError(f"widths: {stage!r} is not a stage of this pass; those are {', '.join(options.stages)}")
        opened = _open(made, stage, options, samples[stage], seed)
        made = _cut(made, [opened], [asked_widths(opened.widths, asked)])
    for stage, share in wanted.items():
        made = _narrow(made, checkpoint, (stage,), options, samples, seed, share)
    if options.total_keep < 1:
        made = _narrow(made, checkpoint, options.stages, options, samples, seed, options.total_keep)
    return made


def _samples(
    checkpoint: Checkpoint, captions: Sequence[str], options: Prune, seed: int
) -> Mapping[str, tuple[Feeds, ...]]:
    specs = checkpoint.specs

    def run(stage: str, feeds: Feeds) -> Feeds:
        made = run_torch(checkpoint.modules[stage], [torch.from_numpy(feeds[t.name]) for t in specs[stage].inputs])
        return {t.name: tensor.numpy() for t, tensor in zip(specs[stage].outputs, made)}

    sizes = CalibrationOptions(options.samples, options.samples, options.samples, seed=seed)
    tokenizer = caption_tokenizer(checkpoint)
    return collect(run, specs, tokenizer, captions, checkpoint.config.blend_steps, sizes).samples


def _narrow(
    checkpoint: Checkpoint,
    before: Checkpoint,
    names: Sequence[str],
    options: Prune,
    samples: Mapping[str, Sequence[Feeds]],
    seed: int,
    share: float,
) -> Checkpoint:
    """Cut the widths of some stages so that together they keep `share` of what they cost in `before`."""
    measure = options.budget if len(names) > 1 else "macs"
    runs = checkpoint.config.fps if len(names) > 1 and measure == "macs" else 1  # in a second of video; text once
    weights = {name: 1 if name == "text" else runs for name in names}
    goal = share * sum(_cost(before, name, measure) * weights[name] for name in names)
    stages = [_open(checkpoint, name, options, samples[name], seed, measure, weights[name]) for name in names]
    if not any(stage.widths.options for stage in stages):
        shown = ", ".join(f"{n} ({checkpoint.config.stages[n].class_name})" for n in names)
        raise UsageError(
            f"nothing of {shown} can be pruned: no option of the class is a width of its inner layers; give it such an "
            f"option, or leave {names[0]}_keep at 1 (docs/compression.md says what a class needs)"
        )
    target = goal
    for _ in range(ROUNDS):
        values = choose_widths([s.widths for s in stages], target, f"{', '.join(names)}: {measure}")
        made = _cut(checkpoint, stages, values)
        reached = sum(_cost(made, name, measure) * weights[name] for name in names)
        if reached <= goal:
            return made
        target *= goal / reached
    raise UsageError(f"{', '.join(names)}: {reached:,} {measure} is the nearest to {goal:,.0f}; ask for a little more")


def _open(
    checkpoint: Checkpoint,
    name: str,
    options: Prune,
    samples: Sequence[Feeds],
    seed: int,
    measure: str = "macs",
    weight: int = 1,
) -> _Stage:
    """Trace a stage and score its units. `weight` is how much the stage counts in the budget's `measure`."""
    module = checkpoint.modules[name]
    spec = spec_of(module)
    design, trace = Design(name, checkpoint.config, module, checkpoint.folder / "encoder"), trace_stage(module, spec)
    found = find_width_options(design, trace.families)
    scores = score_families(module, spec, trace, options.criterion, samples, seed) if found else []
    by_family = {id(family): score for family, score in zip(trace.families, scores)}
    of_options = tuple(tuple(by_family[id(family)] for family, _ in one.families) for one in found)
    if measure == "macs":
        products = [TracedProduct(call.macs * weight, call.places) for call in trace.calls]
    else:
        counted = [(p.numel(), tuple((key, axis) for axis in range(p.ndim))) for key, p in module.named_parameters()]
        products = [TracedProduct(*one) for one in counted]
    widths = Widths(name, found, of_options, products, trace.sizes, options.round_to, options.floor)
    return _Stage(design, trace, widths, samples)


def _cut(checkpoint: Checkpoint, stages: Sequence[_Stage], values: Sequence[Sequence[int]]) -> Checkpoint:
    modules: dict[str, nn.Module] = {}
    configs: dict[str, StageConfig] = {}
    for stage, chosen in zip(stages, values):
        name, widths = stage.design.stage, stage.widths
        if tuple(chosen) == widths.start:
            continue
        removed = choose_units(widths.options, widths.scores, chosen)
        modules[name], configs[name] = cut(stage.design, widths.options, chosen, removed)
        check_cut(stage.design.module, modules[name], stage.trace, removed, stage.samples[:CHECKED], name)
    return with_stages(checkpoint, modules, configs)


def _cost(checkpoint: Checkpoint, name: str, measure: str) -> int:
    module = checkpoint.modules[name]
    return count_parameters(module) if measure == "parameters" else count_macs(module, spec_of(module))
