"""Power readings, from lines that boards and drivers really wrote: copied from public bug reports and test suites."""

from __future__ import annotations

import os
import sys
import time

import pytest

from t2v_edge.device import power
from t2v_edge.device.power import (
    BOARD,
    Power,
    PowerReading,
    PowerSampler,
    PowerTool,
    find_tool,
    parse_nvidia_smi,
    parse_tegrastats,
)

# Jetson AGX Orin 64 GB, JetPack 5.1 (R35), idle
ORIN_JETPACK_5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ "
    "729 APE 174 CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C "
    "tj@42.593C SOC1@40.468C CV2@-256C VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
# Jetson Orin Nano 8 GB, JetPack 6
NANO_JETPACK_6 = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,14%@729,13%@729,"
    "11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 "
    "cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW "
    "VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
# Jetson AGX Orin, R36.4.4 (JetPack 6.2.1)
ORIN_JETPACK_6 = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112,8%@2035,"
    "14%@2201,46%@1267,47%@1267,2%@1267,10%@1267,4%@1036,5%@1036,6%@1036,10%@1036] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] "
    "NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 "
    "cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C soc1@49.656C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW "
    "VIN_SYS_5V0 4707mW/4707mW"
)
# Jetson AGX Thor, R38.4 (JetPack 7.1)
THOR_JETPACK_7_1 = (
    "05-17-2026 10:00:32 RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,0%@972,0%@972,0%@972,"
    "1%@972,0%@972,1%@972,1%@972,0%@972,0%@972,3%@972,0%@972,0%@972,1%@972] EMC_FREQ 0%@665 GR3D_FREQ @[0,0,0] "
    "NVENC0_FREQ @0 NVENC1_FREQ @0 NVDEC0_FREQ @0 NVDEC1_FREQ @0 NVJPG0_FREQ @0 VIC off OFA_FREQ @0 PVA0_FREQ off "
    "APE 300 cpu@34.468C tj@34.5C soc012@33.781C soc345@34.5C VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 4165mW/4165mW "
    "VIN_SYS_5V0 4126mW/4126mW"
)
# Jetson AGX Thor developer kit, R39.2 (JetPack 7.2): the highest follows the mean, and the kit's input is a rail
THOR_JETPACK_7_2 = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972,0%@972,0%@972,"
    "0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,2%@972] cpu@60.406C tj@63.281C soc012@58.468C "
    "gpu@62.906C soc345@63.281C VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW "
    "VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)
# Jetson Orin Nano Super, JetPack 7.2: temperatures with their highest as well
NANO_JETPACK_7_2 = (
    "09-19-2026 13:33:03 RAM 2845/7486MB (lfb 33x4MB) CPU [1%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 3%@665 "
    "GR3D_FREQ 0%@[305] NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off APE 200 cpu@45.375C/45.812C "
    "soc2@44.687C/44.843C soc0@46.25C/46.25C gpu@46.562C/46.843C tj@46.562C/46.843C soc1@46.281C/46.281C "
    "VDD_IN 3462mW/3522mW/3582mW VDD_CPU_GPU_CV 442mW/483mW/523mW VDD_SOC 1127mW/1127mW/1127mW"
)
# Jetson TX2, before JetPack 5: no units, and no line for us
TX2_JETPACK_4 = (
    "RAM 3276/7859MB (lfb 5x4MB) SWAP 1626/12122MB (cached 181MB) CPU [44%@1421,49%@2031,67%@2034,17%@1420] EMC_FREQ "
    "1%@1866 GR3D_FREQ 0%@114 APE 150 PLL@42.5C GPU@39.5C VDD_SYS_GPU 182/182 VDD_IN 5297/5297"
)


@pytest.mark.parametrize(
    "line, rails, memory",
    [
        (
            ORIN_JETPACK_5,
            {"VDD_GPU_SOC": 2.399, "VDD_CPU_CV": 0.4, "VIN_SYS_5V0": 4.032, "VDDQ_VDD2_1V8AO": 0.301},
            1282,
        ),
        (NANO_JETPACK_6, {"VDD_IN": 12.479, "VDD_CPU_GPU_CV": 4.667, "VDD_SOC": 2.817}, 6185),
        (ORIN_JETPACK_6, {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707}, 18207),
        (THOR_JETPACK_7_1, {"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 4.165, "VIN_SYS_5V0": 4.126}, 4208),
        (THOR_JETPACK_7_2, {"VDD_GPU": 37.528, "VDD_CPU_SOC_MSS": 18.961, "VIN_SYS_5V0": 18.331, "VIN": 87.426}, 36529),
        (NANO_JETPACK_7_2, {"VDD_IN": 3.462, "VDD_CPU_GPU_CV": 0.442, "VDD_SOC": 1.127}, 2845),
    ],
)
def test_tegrastats_tells_the_watts_of_now_by_rail(line, rails, memory):
    for ended in (line, line + "\n"):
        assert parse_tegrastats(ended) == PowerReading(rails, memory)


@pytest.mark.parametrize(
    "line",
    [
        TX2_JETPACK_4,
        "",
        "tegrastats: command not found",
        "VDD_IN mW",
        "VDD_IN 12W/3W",
        "VDD_IN 99999999999mW",
        "x" * 4096,
    ],
)
def test_a_line_without_rails_is_no_reading(line):
    assert parse_tegrastats(line) is None


def test_a_line_of_many_rails_is_not_taken_whole():
    assert len(parse_tegrastats(" ".join(f"R{n} 1mW" for n in range(1000))).rails_w) == power.MAX_RAILS


@pytest.mark.parametrize(
    "line, reading",
    [
        ("44.94, 2163\n", PowerReading({BOARD: 44.94}, 2163)),  # GeForce of 8 GB under load
        ("12.98, [N/A]\n", PowerReading({BOARD: 12.98}, None)),  # GB10: memory shared with the processor
        ("[N/A], 305", PowerReading({}, 305)),
        ("[N/A], [N/A]", None),  # AGX Thor
        ("[Not Supported], [Not Supported]", None),
        ("[Insufficient Permissions], [Insufficient Permissions]", None),
        ("No devices were found", None),
        ("1, 2, 3", None),
        ("nan, inf", None),
        ("", None),
    ],
)
def test_nvidia_smi_tells_what_the_gpu_knows(line, reading):
    assert parse_nvidia_smi(line) == reading


def test_a_process_has_the_memory_of_its_own_lines():
    text = "953998, 1204\n17, 300\n17, 20\n18, [N/A]\n"
    assert power.sum_own_memory(text, 17) == 320
    assert power.sum_own_memory(text, 18) is None and power.sum_own_memory(text, 1) is None
    assert power.own_gpu_memory_mib(which=lambda name: None) is None


def test_tegrastats_comes_before_nvidia_smi_which_is_for_gpus_at_work(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def having(*names):
        return lambda name: f"/usr/bin/{name}" if name in names else None

    assert find_tool(True, having()) is None
    assert find_tool(False, having("nvidia-smi")) is None
    assert find_tool(False, having("tegrastats", "nvidia-smi")).name == "tegrastats"
    assert "--id=0" in find_tool(True, having("nvidia-smi")).command
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c4f8b4db,1")
    assert "--id=GPU-c4f8b4db" in find_tool(True, having("nvidia-smi")).command


def tool(code, *arguments, parse=parse_tegrastats, totals=power.TOTALS):
    return PowerTool("fake", (sys.executable, "-u", "-c", code, *arguments), parse, totals)


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def is_dead(process):
    return process.poll() is not None


def test_a_sampler_has_the_mean_and_the_highest_of_what_a_tool_writes():
    lines = ("VDD_IN 1000mW/1mW VDD_SOC 500mW/1mW RAM 10/99MB", "nothing", "VDD_IN 3000mW/1mW RAM 30/99MB")
    code = "import sys, time\nfor line in sys.argv[1:]: print(line)\ntime.sleep(60)"
    with PowerSampler(tool(code, *lines)) as sampler:
        wait_for(lambda: sampler.power.readings == 2)
    assert sampler.power == Power(
        "fake", 2, {"VDD_IN": 2.0, "VDD_SOC": 0.5}, {"VDD_IN": 3.0, "VDD_SOC": 0.5}, "VDD_IN", 30.0
    )
    assert sampler.power.total_w == 2.0


def test_rails_that_feed_no_others_make_no_total():
    sampler = PowerSampler(tool(""))
    sampler.add(parse_tegrastats(ORIN_JETPACK_6))
    assert sampler.power.total is None and sampler.power.total_w is None
    sampler.add(parse_tegrastats(THOR_JETPACK_7_2))
    assert sampler.power.total == "VIN"


def test_a_tool_is_ended_on_any_exit():
    with pytest.raises(KeyboardInterrupt), PowerSampler(tool("import time; time.sleep(60)")) as sampler:
        assert not is_dead(sampler._process)
        raise KeyboardInterrupt
    assert is_dead(sampler._process) and not sampler._thread.is_alive()
    assert sampler.power == Power("fake")


def test_a_tool_that_will_not_end_is_killed_in_bounded_time(monkeypatch):
    monkeypatch.setattr(power, "STOP_S", 0.3)
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "while True: print('VDD_IN 1mW/1mW'); time.sleep(0.01)"
    )
    with PowerSampler(tool(code)) as sampler:
        wait_for(lambda: sampler.power.readings)
        start = time.monotonic()
    assert is_dead(sampler._process) and time.monotonic() - start < 5


def test_a_tool_that_ends_by_itself_writes_rubbish_or_is_not_there_costs_the_figure_only(tmp_path):
    with PowerSampler(tool("raise SystemExit('no permission')")) as sampler:
        wait_for(lambda: is_dead(sampler._process))
    assert sampler.power == Power("fake")
    with PowerSampler(tool("import os, time; os.write(1, bytes(range(256)) * 4096); time.sleep(60)")) as sampler:
        time.sleep(0.1)
    assert sampler.power.readings == 0
    with PowerSampler(PowerTool("fake", (str(tmp_path / "absent"),), parse_tegrastats, ())) as sampler:
        pass
    assert sampler.power == Power("fake")
    with PowerSampler(None) as sampler:
        pass
    assert sampler.power == Power()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")
def test_a_sampler_leaves_no_file_open():
    def opened():
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(3):
        with PowerSampler(tool("print('VDD_IN 1mW/1mW')")) as sampler:
            wait_for(lambda: sampler.power.readings)
    assert opened() == before
