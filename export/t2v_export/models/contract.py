"""The `StageSpec` of a stage class: read from a module, or made. docs/formats.md has the names and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec, TensorSpec


def spec_of(module: nn.Module) -> StageSpec:
    """The contract of a stage's module, its attribute `spec`."""
    spec: Any = module.spec
    assert isinstance(spec, StageSpec)
    return spec


def text_spec(tokens: int, condition_size: int) -> StageSpec:
    """`input_ids`, `attention_mask` (1, tokens) -> `condition` (1, condition_size)."""
    ids = (TensorSpec("input_ids", (1, tokens), "int64"), TensorSpec("attention_mask", (1, tokens), "int64"))
    return StageSpec("text", ids, (TensorSpec("condition", (1, condition_size)),))


def motion_spec(
    condition_size: int, motion_size: int, noises: Sequence[NoiseSpec] = (), states: Sequence[StateSpec] = ()
) -> StageSpec:
    """`condition`, noises, states -> `motion` (1, motion_size), next states."""
    feeds = (TensorSpec("condition", (1, condition_size)),)
    return StageSpec("motion", feeds, (TensorSpec("motion", (1, motion_size)),), tuple(noises), tuple(states))


def render_spec(
    condition_size: int, motion_size: int, height: int, width: int, noises: Sequence[NoiseSpec] = ()
) -> StageSpec:
    """`motion`, `condition`, noises -> `frame`, the float image (1, 3, height, width) before pixel conversion."""
    feeds = (TensorSpec("motion", (1, motion_size)), TensorSpec("condition", (1, condition_size)))
    return StageSpec("render", feeds, (TensorSpec("frame", (1, 3, height, width)),), tuple(noises))
