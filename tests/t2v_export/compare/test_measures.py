"""The measures of a comparison against values known by other means."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from t2v_edge.errors import CheckpointError, UsageError
from t2v_edge.spec import NoiseSpec
from t2v_export.compare.measures import cost, drift
from t2v_export.compare.measures.frechet import frechet_distance
from t2v_export.compare.measures.temporal import FlowMeter, TemporalSums
from t2v_export.compare.page.svg import Axis, Interval, Series, interval_plot, line_plot, scatter_plot
from t2v_export.compare.report import change, rounded
from t2v_export.evaluate.accuracy import paired, paired_differences
from t2v_export.evaluate.caption_set import read_slotted
from t2v_export.evaluate.evaluator import Evaluator, read_spec
from t2v_export.evaluate.fidelity import luminance, psnr, ssim
from t2v_export.evaluate.mixes import Comparable
from t2v_export.evaluate.readings import UNNAMED, Readings, named_values
from tests.t2v_export.compare_samples import FEATURES, SIZE, SLOTS, write_captions, write_evaluator


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(side: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 (side, side, 3)."""
    noise = generator(seed).integers(0, 256, (side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def test_paired_difference_counts_gains_and_losses_with_mcnemars_exact_p():
    one = np.array([1] * 90 + [0] * 7 + [1] * 3, bool)
    other = np.array([1] * 90 + [1] * 7 + [0] * 3, bool)
    found = paired(one, other, generator())
    assert (found["points"], found["gained"], found["lost"], found["count"]) == (-4, 3, 7, 100)
    assert found["p"] == pytest.approx(2 * sum([1, 10, 45, 120]) / 1024)  # 2 P(X <= 3), X ~ B(10, 1/2)


def test_bootstrap_interval_is_that_of_resampling_captions():
    random = generator(1)
    one, other = random.random(400) < 0.9, random.random(400) < 0.95
    found = paired(one, other, generator(2))
    rows = random.integers(0, 400, (20_000, 400))
    differences = 100 * (one.astype(int) - other)[rows].mean(1)
    assert (found["low"], found["high"]) == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=0.3)
    assert found["low"] < found["points"] < found["high"]


def test_equal_readings_differ_by_exactly_nothing_and_slots_nobody_names_are_left_out():
    named = np.array([[0, UNNAMED], [1, UNNAMED], [2, UNNAMED]])
    readings = Readings(("colour", "light"), named, np.array([[0, 1], [2, 1], [2, 0]]))
    found = paired_differences(readings, readings, 0)
    assert list(found) == ["colour", "all"]
    for entry in found.values():
        assert (entry["points"], entry["low"], entry["high"], entry["p"]) == (0, 0, 0, 1)


@pytest.mark.parametrize("n, d", [(60, 5), (8, 20)])
def test_frechet_distance_is_the_formula_with_matrix_roots(n, d):
    one = generator(3).standard_normal((n, d))
    other = generator(4).standard_normal((n, d)) * 1.5 + 0.3
    first, second = np.cov(one.T), np.cov(other.T)
    mean = one.mean(0) - other.mean(0)
    wanted = mean @ mean + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-3)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    assert frechet_distance(one, one.copy()) == 0
    assert frechet_distance(one, one + 2.0) == pytest.approx(4 * d)  # a shift alone: its squared length


def test_psnr_has_its_known_values_and_a_roof():
    frame = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(frame, frame) == 100
    assert psnr(frame, frame + 5) == pytest.approx(20 * np.log10(255 / 5))
    one_off = frame.copy()
    one_off[0, 0, 0] += 1
    assert psnr(frame, one_off) == pytest.approx(10 * np.log10(255**2 * frame.size))


def test_ssim_is_that_of_the_paper_and_exactly_1_for_equal_frames():
    one = luminance(picture())
    noisy = np.clip(one + generator(5).normal(0, 12, one.shape), 0, 255).astype(np.float32)
    assert ssim(one, one.copy()) == 1

    def blur(plane):
        return gaussian_filter(plane.astype(np.float64), 1.5, truncate=5 / 1.5)

    x, y = blur(one), blur(noisy)
    xx, yy, xy = blur(one * one) - x * x, blur(noisy * noisy) - y * y, blur(one * noisy) - x * y
    a, b = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wanted = ((2 * x * y + a) * (2 * xy + b) / ((x * x + y * y + a) * (xx + yy + b)))[5:-5, 5:-5].mean()
    assert ssim(one, noisy) == pytest.approx(wanted, abs=1e-3)
    assert ssim(one, noisy) < 0.9


def test_warping_error_follows_motion_and_sees_what_does_not():
    large = picture(160, 6)
    before, after = large[20:116, 20:116], large[20:116, 18:114]  # two pixels to the right
    flow = FlowMeter().between(luminance(before), luminance(after))
    assert flow.sure.mean() > 0.8 and flow.still.mean() < 0.05
    moved, flickering = TemporalSums(), TemporalSums()
    moved.add(before, after, flow)
    noisy = np.clip(after.astype(int) + generator(7).integers(-9, 10, after.shape), 0, 255).astype(np.uint8)
    flickering.add(before, noisy, flow)
    naive = np.abs(after.astype(float) - before).mean()
    assert moved.warp < naive / 5 and flickering.warp > 3 * moved.warp


def test_flicker_is_the_change_where_nothing_moves():
    still = picture(64, 8) // 2
    flow = FlowMeter().between(luminance(still), luminance(still))
    sums, brighter = TemporalSums(), TemporalSums()
    sums.add(still, still, flow)
    brighter.add(still, still + 4, flow)
    assert sums.warp == sums.flicker == 0 and flow.still.mean() > 0.99
    assert brighter.flicker == 4
    sums.merge(brighter)
    assert sums.flicker == 2
    assert TemporalSums().warp is None and TemporalSums().flicker is None


def test_relative_error_is_of_all_states_together():
    one = {"a": np.array([[3.0, 0.0]], np.float32), "b": np.array([[0.0]], np.float32)}
    other = {"a": np.array([[0.0, 0.0]], np.float32), "b": np.array([[4.0]], np.float32)}
    assert drift._relative(one, other) == pytest.approx(5 / 4)
    assert drift._relative(one, one) == 0


@pytest.mark.parametrize(
    "steps, early, late", [(1000, (50, 150), (950, 1000)), (100, (25, 50), (75, 100)), (2, (0, 1), (1, 2))]
)
def test_windows_of_drift(steps, early, late):
    assert drift.windows(steps) == {"early": early, "late": late}
    assert drift.frame_steps(steps)[-1] == steps


def test_changes_are_percent_and_nothing_over_nothing_is_no_change():
    assert change(1.1, 1.0) == pytest.approx(10) and change(0.0, 0.0) == 0
    assert change(1.0, 0.0) is None and change(None, 1.0) is None
    assert rounded({"a": [1.23456789, float("inf")], "b": np.float64(2)}) == {"a": [1.23457, None], "b": 2.0}


def test_models_are_compared_as_far_as_their_contracts_go(tmp_path):
    from dataclasses import replace

    from tests.t2v_edge.conftest import make_tiny

    tiny = make_tiny().manifest
    assert Comparable.of(tiny, tiny) == Comparable(True, True, True, True) and not Comparable.of(tiny, tiny).reasons()
    look = replace(tiny.stages["render"], noises=(NoiseSpec("look", (1, 2), scale=0.5),))
    other = replace(tiny, stages={**tiny.stages, "render": look})
    assert Comparable.of(tiny, other) == Comparable(False, False, False, False)
    state = replace(tiny.stages["motion"], states=(replace(tiny.stages["motion"].states[0], start="zeros"),))
    started = replace(tiny, stages={**tiny.stages, "motion": state})
    assert not Comparable.of(tiny, started).frames  # step noises are drawn after the states
    faster = replace(tiny, video=replace(tiny.video, fps=32))
    found = Comparable.of(tiny, faster)
    assert not found.motion and not found.frames and any("rates" in reason for reason in found.reasons())


def test_evaluator_reads_values_and_the_features_behind_them(tmp_path):
    folder = write_evaluator(tmp_path / "evaluator")
    evaluator = Evaluator(folder)
    frames = [picture(32, seed) for seed in range(4)]
    read, features = evaluator.read(frames)
    assert len(read) == len(SLOTS) and all(0 <= i < len(v) for i, v in zip(read, SLOTS.values(), strict=True))
    assert features.shape == (FEATURES,) and np.abs(features).max() <= 1  # behind the last Gemm, after Tanh
    again = evaluator.read([cv2.resize(f, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for f in frames])[1]
    assert np.array_equal(features, again)
    assert evaluator.spec.positions(16, 1.0) == [16, 18, 20, 22]


def test_a_wrong_evaluator_is_a_typed_error(tmp_path):
    folder = write_evaluator(tmp_path / "evaluator")
    text = (folder / "evaluator.json").read_text()
    (folder / "evaluator.json").write_text(text.replace('"frames": 4', '"frames": 5'))
    with pytest.raises(CheckpointError, match="evaluator.json says"):
        Evaluator(folder)
    (folder / "evaluator.json").write_text(text.replace("t2v-evaluator", "other"))
    with pytest.raises(CheckpointError, match="not t2v-evaluator"):
        read_spec(folder)
    (folder / "evaluator.json").write_text(text)
    (folder / "evaluator.onnx").write_bytes(b"\x08\x01broken")
    with pytest.raises(CheckpointError, match="make it again"):
        Evaluator(folder)


def test_captions_keep_their_slots_and_unknown_values_are_refused(tmp_path):
    captions = read_slotted(write_captions(tmp_path / "c.jsonl", [{"colour": "blue"}, {}, {"light": "dark"}]), 3)
    slots = {slot: tuple(values) for slot, values in SLOTS.items()}
    assert named_values(captions, slots).tolist() == [[2, UNNAMED], [UNNAMED, UNNAMED], [UNNAMED, 0]]
    assert len(read_slotted("heldout", 7)) == 7 and read_slotted("heldout", 7)[0].slots["action"]
    assert read_slotted("zh", 2)[0].slots == {}
    with pytest.raises(UsageError, match="'pink'"):
        named_values(read_slotted(write_captions(tmp_path / "d.jsonl", [{"colour": "pink"}])), slots)
    (tmp_path / "e.jsonl").write_text('{"text": "a", "slots": ["red"]}\n')
    with pytest.raises(UsageError, match="slots"):
        read_slotted(tmp_path / "e.jsonl")


def test_memory_that_cannot_be_measured_says_so(tmp_path):
    from t2v_edge.errors import EngineError
    from t2v_export.evaluate.mixes import VariantMix

    with pytest.raises(EngineError, match="--no-timing"):
        cost.measure_memory(VariantMix("x", tmp_path / "nowhere", {"text": "fp32"}), "onnxruntime", "a")


def test_axes_map_their_ends_and_have_round_ticks():
    axis = Axis(0, 10, 50, 450)
    assert (axis(0), axis(5), axis(10)) == (50, 250, 450) and axis.ticks() == [0, 2, 4, 6, 8, 10]
    log = Axis(1, 1000, 0, 300, log=True)
    assert (log(1), log(10), log(1000)) == (0, 100, 300) and log.ticks() == [1, 10, 100, 1000]
    assert Axis(3, 3, 0, 1).ticks() and Axis(0, 0, 0, 1, log=True)(0) >= 0
    assert Axis(20, 60, 0, 1, log=True).ticks() == [20, 50]


def test_plots_draw_every_series_and_escape_names():
    lines = line_plot(
        [Series("<a>", [(1, 0.0), (10, 1e-3)], "s1"), Series("b", [(1, 1.0), (10, 2.0)], "s2")],
        "x",
        "y",
        log_x=True,
        log_y=True,
    )
    assert lines.count("<polyline") == 2 and "&lt;a&gt;" in lines and "nan" not in lines
    rows = interval_plot([("all", [Interval("one", -1, -0.5, 0, "s1"), Interval("two", 0, 0, 0, "s2")])], "points")
    assert rows.count("<circle") == 2
    scatter = scatter_plot([("a", 1.0, 99.0, "s0"), ("b", 1.0, 99.0, "s1")], "ms", "%", most=100)
    assert scatter.count("<circle") == 2 and ">101<" not in scatter
