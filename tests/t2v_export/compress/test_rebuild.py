from __future__ import annotations

import pytest
import torch

from t2v_edge.errors import CheckpointError
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
from t2v_export.compress.rebuild import rebuild_checkpoint
from t2v_export.recipe import Rebuild


def test_weights_that_fit_are_carried_over_and_the_others_start_the_same_each_time(make_checkpoint):
    checkpoint = load_checkpoint(make_checkpoint())
    options = Rebuild("render", {"upsample": "pixel_shuffle"})
    made, again = rebuild_checkpoint(checkpoint, options), rebuild_checkpoint(checkpoint, options)
    assert made.sha256 == again.sha256 != checkpoint.sha256
    assert torch.equal(made.render.stem.linear.weight, checkpoint.render.stem.linear.weight)
    assert made.render.blocks[0].up[0].weight.shape[0] == 4 * checkpoint.render.blocks[0].up[1].weight.shape[0]
    assert made.motion is checkpoint.motion
    assert made.config.stages["render"].options == {"channels": [12, 8], "noise_size": 3, "upsample": "pixel_shuffle"}


def test_a_rebuilt_checkpoint_is_saved_and_loads(make_checkpoint, tmp_path):
    made = rebuild_checkpoint(load_checkpoint(make_checkpoint()), Rebuild("motion", {"layers": 2}))
    save_loaded(made, tmp_path / "deep", dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "deep")
    assert [s.name for s in loaded.specs["motion"].states] == ["h0", "h1"]
    for name, value in made.motion.state_dict().items():
        assert torch.equal(value, loaded.motion.state_dict()[name])


def test_options_that_the_class_refuses_are_named(make_checkpoint):
    checkpoint = load_checkpoint(make_checkpoint())
    with pytest.raises(CheckpointError, match="no option 'depth'"):
        rebuild_checkpoint(checkpoint, Rebuild("render", {"depth": 3}))
