from __future__ import annotations

import numpy as np
import pytest

from t2v_calibration.calibration_set import CalibrationError
from t2v_calibration.ranges import BINS, METHODS, Histogram, choose_grid, make_grid, quantize_weight, weight_scales


def histogram(*arrays: np.ndarray) -> Histogram:
    made = Histogram()
    for array in arrays:
        made.add("x", array)
    return made


def normal(count: int = 20_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def test_minmax_scales_are_those_of_numpy_by_hand():
    values = np.array([-1.5, 0.25, 3.0], np.float32)
    signed = choose_grid("x", histogram(values), signed=True)
    assert (signed.scale, signed.zero_point) == (np.float32(3 / 127), 0)
    unsigned = choose_grid("x", histogram(values), signed=False)
    assert (unsigned.scale, unsigned.zero_point) == (np.float32(4.5 / 255), 85)


def test_unsigned_grid_of_a_relu_starts_at_zero_and_zero_is_always_exact():
    assert choose_grid("x", histogram(np.maximum(normal(), 0)), signed=False).zero_point == 0
    for low, high in ((-3.1, 0.7), (0.2, 9.0), (-5.0, -1.0)):
        grid = make_grid(low, high, signed=False)
        assert grid.rounded(np.zeros(1))[0] == 0 and 0 <= grid.zero_point <= 255
        np.testing.assert_allclose(grid.rounded(np.array([low, high])), [low, high], atol=grid.scale)


@pytest.mark.parametrize("signed", [True, False])
def test_constant_zero_has_a_usable_scale(signed):
    grid = choose_grid("x", histogram(np.zeros(8, np.float32)), signed=signed)
    assert grid.scale == 1 and grid.zero_point == 0


def test_histogram_that_grows_and_one_that_merges_count_alike():
    parts = [normal(seed=seed) * 10.0**seed for seed in range(4)]
    grown, merged = histogram(*parts), histogram(parts[3]).merged(histogram(*parts[:3]))
    assert np.array_equal(grown.counts, merged.counts) and grown.reach == merged.reach
    assert grown.counts.sum() == sum(part.size for part in parts)
    assert (grown.low, grown.high) == (min(p.min() for p in parts), max(p.max() for p in parts))


def test_percentile_cuts_the_tails_and_minmax_does_not():
    values = np.concatenate([normal(), [1000.0]]).astype(np.float32)
    assert choose_grid("x", histogram(values), "minmax").scale * 127 == pytest.approx(1000)
    assert choose_grid("x", histogram(values), "percentile", percentile=99.9).scale * 127 < 5


def test_mse_and_entropy_pass_over_an_outlier_that_costs_more_than_it_is_worth():
    values = np.concatenate([normal(200_000), [12.0]]).astype(np.float32)
    counted = histogram(values)
    error = {}
    for method in METHODS:
        grid = choose_grid("x", counted, method, percentile=99.99)
        error[method] = float(((grid.rounded(values) - values) ** 2).mean())
    assert error["mse"] == min(error.values()) and error["mse"] < 0.5 * error["minmax"]
    assert choose_grid("x", counted, "entropy").scale < choose_grid("x", counted, "minmax").scale


def test_zeros_of_a_relu_do_not_draw_an_entropy_range_in():
    values = np.maximum(normal(200_000) - 1, 0)
    signed = choose_grid("x", histogram(values), "entropy")
    assert signed.scale > 0.5 * choose_grid("x", histogram(values), "minmax").scale


def test_every_method_keeps_all_of_a_uniform_range():
    values = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    for method in ("minmax", "mse", "entropy"):
        assert choose_grid("x", histogram(values), method).scale * 127 == pytest.approx(1, rel=0.06), method


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    with pytest.raises(CalibrationError, match="/render/conv is NaN or infinite"):
        Histogram().add("/render/conv", np.array([1.0, bad], np.float32))
    with pytest.raises(CalibrationError, match="weight"):
        weight_scales(np.array([[1.0, bad]], np.float32), 0)


def test_nothing_counted_is_an_error_with_a_remedy():
    with pytest.raises(CalibrationError, match="nothing reached conv.*more captions"):
        choose_grid("conv", Histogram())


def test_weight_scales_are_per_channel_and_symmetric():
    weight = np.array([[1.0, -2.0], [0.5, 0.25], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(weight_scales(weight, 0), np.array([2 / 127, 0.5 / 127, 1], np.float32))
    np.testing.assert_array_equal(weight_scales(weight, 1), np.array([1 / 127, 2 / 127], np.float32))
    assert quantize_weight(weight, weight_scales(weight, 0), 0).tolist() == [[64, -127], [127, 64], [0, 0]]


def test_values_below_a_floor_count_as_the_floor():
    whole = histogram(np.linspace(-8, 4, 1201))
    made = whole.above(-2.0)
    assert (made.low, made.high) == (-2.0, 4.0) and made.counts.sum() == whole.counts.sum()
    assert whole.low == -8.0 and made.counts[: BINS // 2 - BINS // 8].sum() == 0
    grid = choose_grid("x", made, "percentile", signed=False)
    assert grid.scale == pytest.approx(6 / 255, rel=0.01) and grid.zero_point == 85
    assert whole.above(-9.0).low == -8.0
