from __future__ import annotations

import numpy as np
import pytest

from t2v_edge.bundle.draws import Draws
from t2v_edge.errors import UsageError
from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec, TensorSpec


def test_draws_come_in_the_documented_order(specs):
    # docs/formats.md: stream noises of motion, then of render, then normal states, then step noises as steps go.
    draws = Draws(specs["motion"], specs["render"], seed=7)
    generator = np.random.Generator(np.random.PCG64(7))
    assert np.array_equal(draws.motion["noise.code"], generator.standard_normal((1, 2), np.float32))
    assert np.array_equal(draws.render["noise.look"], generator.standard_normal((1, 2), np.float32))
    assert np.array_equal(draws.states["state.hidden"], generator.standard_normal((1, 5), np.float32))
    for _ in range(3):
        expected = generator.random((1, 2), np.float32) * np.float32(0.5)
        assert np.array_equal(draws.step()["noise.jitter"], expected)
        assert draws.step()["noise.jitter"].dtype == np.float32
        generator.random((1, 2), np.float32)


def test_states_start_at_zeros_or_at_stored_values(specs):
    states = (StateSpec("a", (2, 1, 3)), StateSpec("b", (1, 2), "stored", (0.5, -1.0)))
    motion = StageSpec("motion", specs["motion"].feeds, (TensorSpec("motion", (1, 3)),), states=states)
    drawn = Draws(motion, specs["render"], 0).states
    assert np.array_equal(drawn["state.a"], np.zeros((2, 1, 3), np.float32))
    assert np.array_equal(drawn["state.b"], np.array([[0.5, -1.0]], np.float32))


def test_scale_multiplies_the_draw(specs):
    def code(scale):
        motion = StageSpec("motion", (), (), (NoiseSpec("code", (1, 2), scale=scale),))
        return Draws(motion, specs["render"], 1).motion["noise.code"]

    assert np.allclose(code(3.0), 3 * code(1.0))


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_out_of_range_is_refused(specs, seed):
    with pytest.raises(UsageError, match="seed"):
        Draws(specs["motion"], specs["render"], seed)
