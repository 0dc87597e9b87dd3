from __future__ import annotations

import torch
from torch import nn

from t2v_edge.spec import StateSpec
from t2v_export.checkpoint.cost import count_macs, count_parameters
from t2v_export.models import build_stage
from t2v_export.models.contract import motion_spec
from t2v_export.models.upsample import UpsampleRenderer

SIZES = {"condition_size": 4, "motion_size": 3, "height": 32, "width": 32}


def test_convolutions_count_their_kernel_at_every_output_pixel():
    renderer = UpsampleRenderer(**SIZES, channels=(8, 6), stem=16)
    wanted = 7 * 8 * 16 * 16 + 32 * 32 * 9 * 8 * 6 + 32 * 32 * 9 * 6 * 3  # stem, block, pixels
    assert count_macs(renderer, renderer.spec) == wanted
    assert renderer.training and not renderer.stem.norm.num_batches_tracked.item()  # as it was
    assert count_parameters(renderer) == (7 + 1 + 2) * 8 * 256 + 9 * 8 * 6 + 2 * 6 + (9 * 6 + 1) * 3


def test_transposed_convolutions_count_their_kernel_at_every_input_pixel():
    renderer = UpsampleRenderer(**SIZES, channels=(8, 6), stem=16, upsample="transpose")
    assert count_macs(renderer, renderer.spec) == 7 * 8 * 256 + 16 * 16 * 16 * 8 * 6 + 32 * 32 * 9 * 6 * 3


def test_recurrent_cells_count_their_gates_whether_written_out_or_torchs_own():
    for cell, gates in (("gru", 3), ("lstm", 4)):
        motion = build_stage("motion", "recurrent", {"cell": cell, "hidden": 10}, **SIZES)
        assert count_macs(motion, motion.spec) == gates * 10 * (4 + 10) + 10 * 3

    class Own(nn.Module):
        spec = motion_spec(4, 3, states=[StateSpec("h", (1, 3))])

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3)

        def forward(self, condition, h):
            made, _ = self.lstm(condition[None], (h[None], torch.zeros_like(h)[None]))
            return made[0], made[0]

    assert count_macs(Own(), Own.spec) == 4 * 3 * (4 + 3)
