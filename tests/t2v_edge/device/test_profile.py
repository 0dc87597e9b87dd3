"""Device profiles: those that come with the package, and users' own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2v_edge.device.profile import MAX_FILE_BYTES, DeviceProfile, list_profiles, load_profile, parse_profile, tomllib
from t2v_edge.errors import DeviceError

SHIPPED = (
    "apple-vision-pro",
    "cpu",
    "cpu-arm64",
    "cpu-x86-avx2",
    "desktop-rtx",
    "h100",
    "h200",
    "jetson-agx-orin-32gb",
    "jetson-agx-orin-64gb",
    "jetson-agx-xavier",
    "jetson-orin-nano-4gb",
    "jetson-orin-nano-8gb",
    "jetson-orin-nx-16gb",
    "jetson-orin-nx-8gb",
    "jetson-thor-t4000",
    "jetson-thor-t5000",
    "jetson-xavier-nx",
    "pico-4",
    "quest-3",
    "quest-3s",
    "quest-pro",
    "rtx-4070",
    "rtx-5070",
)
ORINS = tuple(name for name in SHIPPED if "-orin-" in name)
DEVICES = Path(__file__).parents[3] / "devices"
OWN = """
name = "mine"
title = "My board"
kind = "jetson"
engines = ["onnxruntime"]
precisions = ["fp32", "fp16"]

[sources]
sheet = "Data sheet of my board"

[memory]
bytes = 4_294_967_296
bandwidth_gb_s = 60
mhz = 3000
source = "sheet"

[gpu]
tpcs = 4
mhz = 1000
source = "sheet"

[dense_tops]
fp16 = 8
source = "sheet"

[[power_mode]]
name = "low"
id = 0
cpu_cores = 2
cpu_mhz = 1000
gpu_tpcs = 2
gpu_mhz = 500
memory_mhz = 1500
source = "sheet"

[[software]]
name = "old"
engine = "onnxruntime"
version = "1"
opset_cap = 18
source = "sheet"

[[software]]
name = "new"
engine = "onnxruntime"
version = "2"
opset_cap = 21
source = "sheet"
"""


def test_shipped_profiles_are_those_the_readme_promises() -> None:
    assert list_profiles() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_loads_and_survives_json(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.precisions[0] == "fp32"
    assert json.loads(json.dumps(profile.to_json()))["opset_cap"] == profile.opset_cap


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_a_shipped_profile_has_a_citation_of_some_length(name: str) -> None:
    data = tomllib.loads((DEVICES / f"{name}.toml").read_text(encoding="utf-8"))
    rows = [row for value in data.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    tables = [value for key, value in data.items() if isinstance(value, dict) and key != "sources"] + rows
    sources = load_profile(name).sources
    assert all(len(citation) >= 20 for citation in sources.values())
    assert {key for key in data if key in sources} == {key for key in data if isinstance(data[key], (dict, list))} - {
        "sources",
        "engines",
        "precisions",
    }
    assert set(data["sources"]) == {table["source"] for table in tables}, "a citation is unused"


def test_the_readme_has_every_profile_and_no_line_is_too_long_to_read() -> None:
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", (DEVICES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(listed) & set(SHIPPED)) == sorted(SHIPPED)
    for path in DEVICES.glob("*.toml"):
        assert all(len(line) <= 125 for line in path.read_text(encoding="utf-8").splitlines()), path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_has_no_rate_that_its_precisions_do_not_name(name: str) -> None:
    profile = load_profile(name)
    named = {"int8" if precision == "int8-u8" else precision for precision in profile.precisions}
    assert set(profile.dense_tops) <= named | {"bf16", "fp8"}
    assert not profile.dense_tops or len(set(profile.dense_tops) & named) >= 1
    assert {line.engine for line in profile.software} <= set(profile.engines)


@pytest.mark.parametrize("name", [n for n in SHIPPED if load_profile(n).dense_tops])
def test_rates_rise_as_precision_falls(name: str) -> None:
    rates = load_profile(name).dense_tops
    order = [rates[precision] for precision in ("fp32", "fp16", "int8") if precision in rates]
    assert order == sorted(order) and len(set(order)) == len(order)


@pytest.mark.parametrize("name", ORINS)
def test_orin_rates_follow_from_their_tpcs_and_clock(name: str) -> None:
    profile = load_profile(name)
    assert profile.gpu_tpcs is not None and profile.gpu_mhz is not None and profile.compute_capability == "8.7"
    int8 = 2 * profile.gpu_tpcs * 4096 * profile.gpu_mhz / 1e6  # two SM a TPC, 4096 operations a clock
    assert profile.dense_tops["int8"] == pytest.approx(int8, rel=0.02)
    assert profile.dense_tops["fp16"] == pytest.approx(int8 / 2, rel=0.03)
    assert profile.dense_tops["fp32"] == pytest.approx(int8 / 16, rel=0.03)


@pytest.mark.parametrize("name", [n for n in SHIPPED if load_profile(n).power_modes])
def test_power_modes_stay_below_the_profile_and_the_unconstrained_one_is_the_profile(name: str) -> None:
    profile = load_profile(name)
    for mode in profile.power_modes:
        low = profile.at_mode(mode.name)
        assert all(low.dense_tops[rate] <= profile.dense_tops[rate] for rate in profile.dense_tops)
        assert low.bandwidth_gb_s is not None and profile.bandwidth_gb_s is not None
        assert low.bandwidth_gb_s <= profile.bandwidth_gb_s
        assert low.power_modes == () and low.opset_cap == profile.opset_cap
        if mode.name.startswith("MAXN"):
            assert low.dense_tops == profile.dense_tops and low.bandwidth_gb_s == profile.bandwidth_gb_s
            assert mode.watts is None
        else:
            assert mode.watts is not None and mode.name.startswith(f"{mode.watts:g}W")
    assert len({mode.id for mode in profile.power_modes}) == len(profile.power_modes)


def test_cards_name_their_link_and_boards_share_memory() -> None:
    for name in SHIPPED:
        profile = load_profile(name)
        assert profile.shares_memory == (profile.link_gb_s is None), name
    assert load_profile("rtx-5070").link_gb_s == 2 * load_profile("rtx-4070").link_gb_s == 63  # type: ignore[operator]


def test_xavier_runs_onnx_runtime_only_and_says_why() -> None:
    for name in ("jetson-agx-xavier", "jetson-xavier-nx"):
        profile = load_profile(name)
        assert profile.engines == ("onnxruntime",) and not profile.dense_tops
        assert "Python is 3.8" in profile.notes and "3.9 or newer" in profile.notes.replace("\n", " ")


def test_devices_that_may_run_tensorrt_8_6_are_capped_at_opset_17() -> None:
    assert {load_profile(name).opset_cap for name in (*ORINS, "h100", "h200")} == {17}
    assert load_profile("jetson-thor-t5000").opset_cap == load_profile("jetson-thor-t4000").opset_cap == 20


def test_dense_rates_of_orin_are_half_its_gpu_sparse_rates_without_dla() -> None:
    assert load_profile("jetson-agx-orin-64gb").dense_tops["int8"] == pytest.approx(170 / 2)
    assert load_profile("jetson-orin-nano-8gb").dense_tops["int8"] == pytest.approx(67 / 2, rel=0.02)


def test_power_mode_scales_rates_by_tpcs_and_clock_and_bandwidth_by_memory_clock() -> None:
    top, low = load_profile("jetson-agx-orin-64gb"), load_profile("jetson-agx-orin-64gb@15W")
    assert low.name == "jetson-agx-orin-64gb@15W" and low.power_mode == "15W"
    assert low.dense_tops["fp16"] == pytest.approx(top.dense_tops["fp16"] * 3 * 408 / (8 * 1300.5), rel=1e-3)
    assert low.bandwidth_gb_s == pytest.approx(204.8 * 2133 / 3199, rel=1e-3)
    assert (low.gpu_tpcs, low.gpu_mhz, low.memory_mhz) == (3, 408, 2133)
    with pytest.raises(DeviceError, match="no power modes"):
        low.at_mode("MAXN")
    assert load_profile("jetson-agx-orin-64gb@MAXN").dense_tops == pytest.approx(top.dense_tops)


def test_unknown_power_mode_names_those_there_are() -> None:
    with pytest.raises(DeviceError, match="MAXN, 15W, 30W, 50W"):
        load_profile("jetson-agx-orin-64gb@60W")
    with pytest.raises(DeviceError, match="no power modes"):
        load_profile("cpu@15W")


def test_quest_3_lists_refresh_rates_and_leaves_unsourced_numbers_out() -> None:
    quest = load_profile("quest-3")
    assert {72, 80, 90, 120} <= set(quest.refresh_rates_hz)
    assert quest.bandwidth_gb_s is None and not quest.dense_tops


@pytest.mark.parametrize(
    ("typed", "meant"), [("jetson-orin-nano", "jetson-orin-nano-8gb"), ("CPU", "cpu"), ("quest3", "quest-3")]
)
def test_unknown_name_suggests_the_near_one(typed: str, meant: str) -> None:
    with pytest.raises(DeviceError, match=f"did you mean .*{meant}"):
        load_profile(typed)


def test_name_like_nothing_lists_all_and_cannot_leave_the_folder() -> None:
    for name in ("zzzz", "../pyproject", "/etc/passwd", ""):
        with pytest.raises(DeviceError, match="jetson-thor-t5000|did you mean"):
            load_profile(name)


def test_own_profile_is_read_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN, encoding="utf-8")
    profile = load_profile(str(path))
    assert isinstance(profile, DeviceProfile)
    assert (profile.name, profile.opset_cap, profile.memory_bytes) == ("mine", 18, 1 << 32)
    assert profile.sources["memory"] == "Data sheet of my board"
    low = profile.at_mode("low")
    assert low.dense_tops["fp16"] == pytest.approx(2) and low.bandwidth_gb_s == pytest.approx(30)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "jetson"', 'kind = "toaster"', "kind is 'toaster'.*cpu, jetson, desktop, server, headset"),
        ('name = "mine"\n', "", "name is missing"),
        ('precisions = ["fp32", "fp16"]', 'precisions = ["fp4"]', "precisions names 'fp4'"),
        ('precisions = ["fp32", "fp16"]', "precisions = []", "precisions must be a list"),
        (
            'bytes = 4_294_967_296\nbandwidth_gb_s = 60\nmhz = 3000\nsource = "sheet"',
            "bytes = 4_294_967_296",
            "memory.source is missing",
        ),
        ('fp16 = 8\nsource = "sheet"', 'fp16 = 8\nsource = "rumour"', "dense_tops.source is 'rumour'.*it cites sheet"),
        ("bytes = 4_294_967_296", "bytes = 4e9", "memory.bytes must be a whole number"),
        ("bandwidth_gb_s = 60", "bandwidth_gb_s = -1", "memory.bandwidth_gb_s must be a number from"),
        ("bandwidth_gb_s = 60", "bandwidth_gb_s = nan", "memory.bandwidth_gb_s must be a number from"),
        ("bandwidth_gb_s = 60", "bandwith_gb_s = 60", "memory.bandwith_gb_s is not known: did you mean bandwidth_gb_s"),
        ("fp16 = 8", "fp16 = true", "dense_tops.fp16 must be a number"),
        ("opset_cap = 18", "opset_cap = 5", "software.old.opset_cap must be a number from 13"),
        ("gpu_tpcs = 2\n", "", "power_mode.low.gpu_tpcs is missing"),
        ("[dense_tops]", "[[dense_tops]]", "dense_tops must be a table"),
        ("[sources]", "[source]", "sources is missing"),
        ("kind =", "kind", "is not TOML"),
    ],
)
def test_malformed_profile_names_the_file_the_key_and_the_remedy(old: str, new: str, message: str) -> None:
    assert old in OWN
    with pytest.raises(DeviceError, match=message) as caught:
        parse_profile(OWN.replace(old, new, 1), "mine.toml")
    assert "mine.toml" in str(caught.value)


def test_profile_without_software_is_refused_because_it_caps_nothing() -> None:
    with pytest.raises(DeviceError, match="software is missing"):
        parse_profile(OWN[: OWN.index("[[software]]")], "mine.toml")


def test_row_with_a_source_of_its_own_is_cited_by_row() -> None:
    text = OWN.replace("[sources]", '[sources]\nnotes = "Release notes"')
    head, mark, tail = text.rpartition("opset_cap = 21\nsource = ")
    profile = parse_profile(head + mark + tail.replace("sheet", "notes"), "mine.toml")
    assert profile.sources["software"] == "Data sheet of my board"
    assert profile.sources["software.new"] == "Release notes"


def test_two_power_modes_of_one_name_are_refused() -> None:
    start, end = OWN.index("[[power_mode]]"), OWN.index("[[software]]")
    with pytest.raises(DeviceError, match="share a name"):
        parse_profile(OWN[:end] + OWN[start:end] + OWN[end:], "mine.toml")


def test_missing_oversized_and_binary_files_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be read"):
        load_profile(str(tmp_path / "absent.toml"))
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(DeviceError, match="larger than"):
        load_profile(str(large))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeviceError, match="not UTF-8"):
        load_profile(str(binary))


def test_profile_nested_beyond_reason_is_a_typed_error() -> None:
    with pytest.raises(DeviceError):
        parse_profile("a = " + "[" * 30_000, "deep.toml")


@settings(max_examples=150, deadline=None)
@given(line=st.integers(0, OWN.count("\n") - 1), text=st.text(max_size=30))
def test_profile_with_any_line_replaced_loads_or_is_a_device_error(line: int, text: str) -> None:
    lines = OWN.split("\n")
    lines[line] = text
    try:
        assert parse_profile("\n".join(lines), "fuzzed").opset_cap >= 13
    except DeviceError:
        pass


def test_software_without_a_name_and_wrong_types_in_rows_are_device_errors() -> None:
    for row in ("software = 3", "software = [3]", "software = [{}]", "power_mode = {name = 'x'}"):
        text = OWN[: OWN.index("[sources]")] + row + "\n" + OWN[OWN.index("[sources]") : OWN.index("[[power_mode]]")]
        with pytest.raises(DeviceError):
            parse_profile(text, "rows.toml")
