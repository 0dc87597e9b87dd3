"""The estimate of what a bundle does on a device: computed by hand, and held against what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from t2v_edge.bundle.bundle import Bundle, GraphEntry
from t2v_edge.device import roofline
from t2v_edge.device.profile import DeviceProfile, Software, load_profile
from t2v_edge.device.roofline import RooflineConstants, check_against, estimate, estimate_stage
from t2v_edge.errors import BundleError

CARD = DeviceProfile(
    "card",
    "A card",
    "desktop",
    ("tensorrt",),
    ("fp32", "fp16", "int8"),
    (Software("x", "tensorrt", "10", 20),),
    memory_bytes=1 << 30,
    bandwidth_gb_s=100,
    gpu_mhz=1000,
    link_gb_s=1,
    dense_tops={"fp32": 1, "fp16": 10, "int8": 20},
)
BOARD = replace(CARD, name="board", kind="jetson", link_gb_s=None)


# Measured on one NVIDIA H200, TensorRT 8.6.0, CUDA graph replay, batch 1: microseconds of networks like ours. Costs are
# their multiply-accumulates and, by hand, kernels: a GRU step two products, gates, state and output; a renderer a
# product, a resize and a convolution for each doubling and a last convolution; an encoder what the reference's has.
# Bytes (a few MB) are far from binding there and left out.
H200_US = [
    ("GRU step 256, float32", "fp32", 400_000, 5, 11),
    ("encoder 6 x 384, 32 tokens, float16", "fp16", 345_000_000, 73, 157),
    ("renderer 128 x 128, float32", "fp32", 1_400_000_000, 12, 117),
    ("renderer 128 x 128, float16", "fp16", 1_400_000_000, 12, 61),
    ("renderer 128 x 128, INT8", "int8", 1_400_000_000, 12, 66),
    ("renderer 256 x 256, float16", "fp16", 2_000_000_000, 14, 79),
    ("renderer 256 x 256, INT8", "int8", 2_000_000_000, 14, 85),
    # checkpoints/small, kernels as t2v_export.graph.traffic counts them
    ("text of small, float32", "fp32", 114_407_136, 65, 179),
    ("text of small, float16", "fp16", 114_407_136, 65, 102),
    ("motion of small, float32", "fp32", 413_000, 33, 86),
    ("motion of small, float16", "fp16", 413_000, 33, 102),
    ("renderer of small, float32", "fp32", 155_321_616, 64, 186),
    ("renderer of small, float16", "fp16", 155_321_616, 65, 197),
]


@pytest.mark.parametrize("name, precision, macs, launches, measured_us", H200_US, ids=[row[0] for row in H200_US])
def test_estimate_comes_within_a_factor_of_two_of_an_h200(name, precision, macs, launches, measured_us):
    graphs = {precision: {"render": entry(precision, macs, 0, 0, launches)}}
    (check,) = check_against(load_profile("h200"), graphs, {precision: {"render": measured_us / 1000}})
    assert check.factor < 2, f"{name}: {check.ratio:.2f} times what was measured"


@pytest.fixture
def round_constants(monkeypatch):
    """Shares and times that can be reckoned with in the head."""
    shares = {"fp32": 0.5, "fp16": 0.1, "int8": 0.05}
    gpu = RooflineConstants(shares, launch_cycles=2000, launch_us=0, runtime_us=10, caption_us=500)
    monkeypatch.setattr(roofline, "GPU", gpu)
    shares = {"fp32": 0.5, "int8": 0.25}
    cpu = RooflineConstants(shares, launch_cycles=0, launch_us=20, runtime_us=100, caption_us=500)
    monkeypatch.setattr(roofline, "CPU", cpu)


def entry(precision="fp32", macs=10**6, weights=10**5, activations=10**5, launches=10):
    return GraphEntry(f"{precision}/render.onnx", precision, 17, (), macs, weights, activations, launches)


@pytest.fixture
def counted(tiny, tmp_path):
    """``counted(variant, stage, **costs)`` says what a graph costs; a graph of no figures stays uncounted."""

    def make(**costs):
        for name, figures in costs.items():
            variant, _, stage = name.partition("_")
            tiny.variants[variant][stage] = replace(
                tiny.variants[variant][stage],
                **dict(zip(("macs", "weight_bytes", "activation_bytes", "launches"), figures)),
            )
        with Bundle.open(tiny.write(tmp_path / "bundle")) as bundle:
            return bundle.manifest

    return make


CHEAP = (0, 0, 0, 0)
by_hand = pytest.mark.usefixtures("round_constants")


@by_hand
def test_arithmetic_binds_where_operations_take_longer_than_bytes():
    found = estimate_stage(CARD, "render", entry(macs=5 * 10**9, weights=10**6, activations=10**6))
    # 10^10 operations at half of 10^12 a second; 2 MB at 100 GB/s; ten kernels of 2,000 clocks of 1 GHz
    assert (found.arithmetic_ms, found.bandwidth_ms, found.launches_ms) == pytest.approx((20, 0.02, 0.02))
    assert found.ms == pytest.approx(20.02) and found.binds == "arithmetic"


@by_hand
def test_bytes_bind_where_they_take_longer_and_are_not_added_to_arithmetic():
    found = estimate_stage(CARD, "render", entry("fp16", macs=5 * 10**6, weights=3 * 10**7, activations=10**7))
    assert (found.arithmetic_ms, found.bandwidth_ms) == pytest.approx((0.01, 0.4))
    assert found.ms == pytest.approx(0.42) and found.binds == "bandwidth"


@by_hand
def test_kernels_bind_where_a_network_is_small_and_take_longer_at_a_lower_clock():
    found = estimate_stage(CARD, "render", entry(launches=50))
    assert found.binds == "launches" and found.launches_ms == pytest.approx(0.1)
    assert estimate_stage(replace(CARD, gpu_mhz=250), "render", entry(launches=50)).launches_ms == pytest.approx(0.4)


@by_hand
def test_a_power_mode_is_slower_in_arithmetic_bandwidth_and_kernels():
    top, low = (
        estimate_stage(load_profile(f"jetson-agx-orin-64gb@{mode}"), "render", entry()) for mode in ("MAXN", "15W")
    )
    assert low.arithmetic_ms / top.arithmetic_ms == pytest.approx(8 * 1300.5 / (3 * 408), rel=1e-2)
    assert low.bandwidth_ms / top.bandwidth_ms == pytest.approx(3199 / 2133, rel=1e-2)
    assert low.launches_ms / top.launches_ms == pytest.approx(1300.5 / 408, rel=1e-3)


@by_hand
def test_a_cpu_has_kernel_times_of_its_own_and_both_int8_variants_go_by_one_rate():
    cpu = replace(CARD, kind="cpu", gpu_mhz=None, link_gb_s=None)
    found = estimate_stage(cpu, "render", entry("int8-u8", macs=10**9))
    assert found.arithmetic_ms == pytest.approx(2 / (0.25 * 20)) and found.launches_ms == pytest.approx(0.2)


@by_hand
def test_frame_is_motion_and_render_and_the_runtime_and_first_frame_has_text_and_copy_besides(counted):
    manifest = counted(fp32_text=(0, 0, 0, 100), fp32_motion=(0, 0, 0, 20), fp32_render=(10**9, 0, 0, 5))
    found = estimate(CARD, manifest)
    size = 3 * manifest.video.width * manifest.video.height
    assert found.copy_ms == pytest.approx(size / 1e6)
    assert found.frame_ms == pytest.approx(0.04 + (4 + 0.01) + 0.01) and found.fps == pytest.approx(1000 / 4.06)
    assert found.first_frame_ms == pytest.approx(0.2 + 0.04 + 4.01 + 0.01 + size / 1e6 + 0.5)
    assert found.binds == "arithmetic" and not found.missing
    assert json.loads(json.dumps(found.to_json()))["estimate"] is True


@by_hand
def test_copy_binds_a_card_on_a_slow_link_and_not_a_board_of_one_memory(counted):
    manifest = counted(fp32_text=CHEAP, fp32_motion=CHEAP, fp32_render=CHEAP)
    slow = estimate(replace(CARD, link_gb_s=1e-3), manifest)
    size = 3 * manifest.video.width * manifest.video.height
    assert slow.binds == "copy" and slow.frame_ms == slow.copy_ms == pytest.approx(size / 1e3)
    assert slow.fps == pytest.approx(1e3 / slow.copy_ms)
    board = estimate(BOARD, manifest)
    assert board.copy_ms == 0 and board.binds == "runtime" and board.frame_ms == pytest.approx(0.01)


@by_hand
def test_the_fastest_variant_is_taken_and_the_more_exact_one_where_it_is_about_as_fast(counted):
    manifest = counted(
        fp32_text=(0, 0, 0, 100),
        fp16_text=(0, 0, 0, 96),
        fp32_motion=CHEAP,
        fp32_render=(10**9, 0, 0, 0),
        fp16_render=(10**9, 0, 0, 0),
    )
    assert [s.variant for s in estimate(CARD, manifest).stages] == ["fp32", "fp32", "fp16"]
    only = replace(CARD, precisions=("fp32",))
    assert [s.variant for s in estimate(only, manifest).stages] == ["fp32", "fp32", "fp32"]


@by_hand
def test_memory_is_that_of_the_graphs_taken_and_what_passes_in_them(counted):
    manifest = counted(fp32_text=CHEAP, fp32_motion=CHEAP, fp32_render=(0, 5, 10**6, 0))
    files = sum(manifest.files[f"fp32/{stage}.onnx"].bytes for stage in ("text", "motion", "render"))
    found = estimate(CARD, manifest)
    assert found.memory_bytes == files + 10**6 + 2 * 3 * manifest.video.width * manifest.video.height and found.fits
    assert estimate(replace(CARD, memory_bytes=10**6), manifest).fits is False
    assert estimate(replace(CARD, memory_bytes=None), manifest).fits is None


@by_hand
@pytest.mark.parametrize(
    "change, missing",
    [
        ({"dense_tops": {}}, "dense_tops"),
        ({"bandwidth_gb_s": None}, "memory.bandwidth_gb_s"),
        ({"gpu_mhz": None}, "gpu.mhz"),
        ({"link_gb_s": None}, "link.bandwidth_gb_s"),
        ({"dense_tops": {"int8": 1}}, "dense_tops.fp32"),
        ({"precisions": ("int8",)}, r"a variant of the text stage that it runs (int8)"),
    ],
)
def test_a_number_that_a_profile_lacks_is_named_and_nothing_is_guessed(counted, change, missing):
    found = estimate(replace(CARD, **change), counted(fp32_text=CHEAP, fp32_motion=CHEAP, fp32_render=CHEAP))
    assert missing in found.missing
    assert found.fps is None and found.first_frame_ms is None and found.memory_bytes is None


@by_hand
def test_a_bundle_that_does_not_say_what_it_costs_is_refused_with_the_remedy(counted):
    manifest = counted(fp32_text=CHEAP, fp32_motion=CHEAP)
    assert estimate(CARD, manifest).missing == ("costs of the render stage in the bundle (export it again)",)
    with pytest.raises(BundleError, match="lacks the costs of its render graphs; export it again"):
        roofline.require_costs(manifest)


@by_hand
def test_a_check_gives_the_ratio_both_ways_and_fails_where_it_would_check_nothing():
    graphs = {"fp32": {"render": entry(macs=5 * 10**9, weights=0, activations=0, launches=0)}}
    slow, fast = (check_against(CARD, graphs, {"fp32": {"render": ms}})[0] for ms in (40.0, 10.0))
    assert (slow.ratio, slow.factor, fast.ratio, fast.factor) == pytest.approx((0.5, 2, 2, 2))
    with pytest.raises(ValueError, match="fp16/render was measured and has no estimate on card"):
        check_against(CARD, graphs, {"fp16": {"render": 1.0}})
