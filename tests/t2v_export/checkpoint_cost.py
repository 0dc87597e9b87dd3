"""What all stages of a checkpoint cost, for the tests of pruning."""

from __future__ import annotations

from dataclasses import dataclass

from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.checkpoint.cost import count_macs, count_parameters
from t2v_export.models.contract import spec_of


@dataclass(frozen=True)
class CheckpointCost:
    """Multiply-accumulates of one run and parameters, by stage; those of a second of video, and of all stages."""

    macs: dict[str, int]
    parameters: dict[str, int]
    macs_per_second: int
    all_parameters: int


def checkpoint_cost(checkpoint: Checkpoint) -> CheckpointCost:
    macs = {stage: count_macs(module, spec_of(module)) for stage, module in checkpoint.modules.items()}
    parameters = {stage: count_parameters(module) for stage, module in checkpoint.modules.items()}
    a_second = macs["text"] + checkpoint.config.fps * (macs["motion"] + macs["render"])
    return CheckpointCost(macs, parameters, a_second, sum(parameters.values()))
