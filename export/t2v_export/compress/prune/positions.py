"""Table rows for positions that no caption reaches, which an encoder for long texts has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.compress.distill.text import tokens
from t2v_export.compress.prune.cut import load_cut
from t2v_export.compress.prune.design import Design, row_option
from t2v_export.compress.prune.trace import trace_stage
from t2v_export.graph.from_torch import run_torch
from t2v_export.models.contract import spec_of

SAMPLES = 8


def prune_positions(checkpoint: Checkpoint, captions: Sequence[str]) -> Checkpoint:
    """The checkpoint without unused last rows of its text stage's tables of positions.

    Some of the `captions`, and one of full length, show which rows are read. Conditions stay exactly the same. A table
    keeps its rows if their number is not an option of the class, or if it changes conditions.
    """
    module = checkpoint.text
    ids, mask = tokens(caption_tokenizer(checkpoint), captions[:SAMPLES])
    fed = list(zip(ids.split(1), mask.split(1)))
    fed.append(_longest(fed))
    by_token = set(trace_stage(module, spec_of(module)).tables)
    for name, last in _last_rows(module, fed).items():
        design = Design("text", checkpoint.config, checkpoint.text, checkpoint.folder / "encoder")
        table = f"{name}.weight"
        rows = checkpoint.text.get_parameter(table).shape[0]
        path = row_option(design, table, rows) if table not in by_token and last + 1 < rows else None
        if path is None:
            continue
        made = load_cut(design, {path: last + 1}, {(table, 0): torch.arange(last + 1, rows)})
        if any(not torch.equal(run_torch(made, i)[0], run_torch(module, i)[0]) for i in fed):
            continue  # relative positions share their rows out by how many there are
        checkpoint = with_stages(checkpoint, {"text": made}, {"text": design.stage_config({path: last + 1})})
    return checkpoint


def _longest(fed: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A caption of full length: the longest one's tokens, repeated as often as it takes."""
    ids, mask = max(fed, key=lambda inputs: int(inputs[1].sum()))
    said = ids[:, : max(1, int(mask.sum()))]
    return said.repeat(1, math.ceil(ids.shape[1] / said.shape[1]))[:, : ids.shape[1]], torch.ones_like(mask)


def _last_rows(module: nn.Module, fed: Sequence[Sequence[torch.Tensor]]) -> dict[str, int]:
    """The last row that was looked up, by the name of the table."""
    last: dict[str, int] = {}
    handles = [
        part.register_forward_pre_hook(
            lambda _, given, name=name: last.update({name: max(last.get(name, 0), int(given[0].max()))})
        )
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding)
    ]
    for inputs in fed:
        run_torch(module, inputs)
    for handle in handles:
        handle.remove()
    return last
