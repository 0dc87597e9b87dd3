"""A machine's facts are read from its files, whatever those hold."""

from __future__ import annotations

import json
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2v_edge.device.jetpack import release_of, version_of
from t2v_edge.device.system import NvpModelMode, PythonFacts, System
from tests.t2v_edge.system_samples import PYTHONS, ROOT, read_system

FILES = (
    "etc/nv_tegra_release",
    "var/lib/dpkg/status",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "var/lib/nvpmodel/status",
    "etc/nvpmodel.conf",
    "usr/local/cuda/version.json",
    "proc/driver/nvidia/version",
    "proc/driver/nvidia/gpus/0000-01-00.0/information",
    "proc/meminfo",
    "proc/cpuinfo",
    "etc/os-release",
)


@pytest.mark.parametrize(
    "name, jetpack, l4t, tensorrt, cuda, system_python, mode",
    [
        ("jetpack-5.1-xavier", "5.1.2", "35.4.1", "8.5.2", "11.4.19", (3, 8), NvpModelMode(5, "MODE_10W_DESKTOP")),
        ("jetpack-5.1-orin", "5.1.2", "35.4.1", "8.5.2", "11.4.19", (3, 8), NvpModelMode(2, "MODE_30W")),
        ("jetpack-6.0", "6.0", "36.3.0", "8.6.2.3", "12.2.12", (3, 10), NvpModelMode(0, "MAXN")),
        ("jetpack-6.2", "6.2", "36.4.3", "10.3.0.30", "12.6.11", (3, 10), NvpModelMode(1, "25W")),
        ("jetpack-7.0", "7.0", "38.2.0", "10.13.3.9", "13.0.0", (3, 12), NvpModelMode(1, "120W")),
        ("jetpack-7.2", "7.2.1", "39.2.1", "10.16.2.10", "13.2.2", (3, 12), NvpModelMode(1, "25W")),
    ],
)
def test_a_recorded_jetson_is_read_right(name, jetpack, l4t, tensorrt, cuda, system_python, mode):
    system = read_system(name)
    assert system.is_jetson and (system.jetpack, system.l4t) == (jetpack, l4t)
    assert (system.tensorrt, system.tensorrt_bindings, system.cuda) == (tensorrt, tensorrt, cuda)
    assert system.system_python == system_python and system.power_mode == mode
    assert system.release is not None and system.release.version == jetpack
    assert version_of(tensorrt)[:2] == version_of(system.release.tensorrt)[:2]
    assert version_of(cuda)[:2] == version_of(system.release.cuda) and system.release.python == system_python


def test_board_memory_cores_and_driver_of_a_jetson_are_read():
    system = read_system("jetpack-6.2")
    assert system.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert system.compatible == ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
    assert system.memory_bytes == 7802712 * 1024 and system.available_bytes == 6245596 * 1024
    assert system.swap_bytes == 3901344 * 1024 and system.cores == 6 and system.cpu == "Arm part 0xd42"
    assert system.driver == "540.4.0" and system.os == "Ubuntu 22.04.5 LTS" and system.gpus == ()


def test_a_package_that_was_removed_or_a_description_does_not_count(tmp_path):
    status = (ROOT / "jetpack-6.2/var/lib/dpkg/status").read_text()
    assert "Package: libnvinfer8\nStatus: deinstall ok config-files" in status and "Version: 0 of" in status
    assert read_system("jetpack-6.2").tensorrt == "10.3.0.30"
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(status.replace("install ok installed", "deinstall ok config-files"))
    system = System.read(tmp_path, PYTHONS["jetpack-6.2"])
    assert (system.tensorrt, system.jetpack, system.cuda, system.l4t) == (None, None, None, None)


def test_a_driver_without_a_number_has_none():
    assert "TempVersion" in (ROOT / "jetpack-7.0/proc/driver/nvidia/version").read_text()
    assert read_system("jetpack-7.0").driver is None


def test_a_desktop_gpu_is_named():
    system = read_system("desktop-rtx")
    assert system.gpus == ("NVIDIA GeForce RTX 3090",) and system.driver == "590.48.01"
    assert not system.is_jetson and system.release is None and system.cores == 12


def test_an_empty_machine_has_no_facts_and_is_no_error(tmp_path):
    system = System.read(tmp_path, PYTHONS["cpu-x86"])
    assert system == System(PYTHONS["cpu-x86"])


def test_without_the_metapackage_jetson_linux_tells_the_jetpack(tmp_path):
    (tmp_path / "etc").mkdir()
    for line, jetpack in (
        ("R36 (release), REVISION: 4.7,", "6.2.1"),
        ("R38 (release), REVISION: 2.2,", "7.0"),
        ("R32 (release), REVISION: 7.6,", None),
        ("R35 (release), REVISION: 9.9,", "5.1.6"),
    ):
        (tmp_path / "etc/nv_tegra_release").write_text(f"# {line} GCID: 1, BOARD: generic, EABI: aarch64\n")
        release = System.read(tmp_path, PYTHONS["jetpack-6.2"]).release
        assert (release and release.version) == jetpack
    assert release_of("36.4.3", "6.1").version == "6.1"


def test_a_modes_file_without_a_status_starts_with_its_default(tmp_path):
    (tmp_path / "etc").mkdir()
    text = (ROOT / "jetpack-7.0/etc/nvpmodel.conf").read_text()
    (tmp_path / "etc/nvpmodel.conf").write_text(text)
    assert System.read(tmp_path, PYTHONS["jetpack-7.0"]).power_mode == NvpModelMode(1, "120W")


def test_what_is_no_regular_file_is_not_read(tmp_path):
    (tmp_path / "etc/os-release").mkdir(parents=True)
    os.mkfifo(tmp_path / "etc/nv_tegra_release")
    start = time.monotonic()
    assert System.read(tmp_path, PYTHONS["cpu-x86"]).l4t is None
    assert time.monotonic() - start < 5


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), data=st.binary(max_size=400), keep=st.integers(0, 2000), at=st.integers(0, 2000))
def test_garbage_in_any_file_never_crashes_the_reader(name, data, keep, at, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    path = root / name
    path.parent.mkdir(parents=True)
    system = "desktop-rtx" if "gpus" in name else "jetpack-6.2"
    real = (ROOT / system / name).read_bytes()
    path.write_bytes(real[: min(at, keep)] + data + real[at:])
    json.dumps(System.read(root, PYTHONS["jetpack-6.2"]).to_json(), allow_nan=False).encode()


def test_numbers_and_texts_of_any_length_are_bounded(tmp_path):
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# R36 (release), REVISION: " + "9." * 300000 + '{"cuda":' * 60000 + "\nModel: " + "x" * 300000)
    start = time.monotonic()
    found = json.dumps(System.read(tmp_path, PYTHONS["cpu-x86"]).to_json())
    assert time.monotonic() - start < 10 and len(found) < 10_000


def test_control_characters_do_not_reach_a_terminal(tmp_path):
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"Jetson\x1b[31m\xff\x07 Orin\0")
    assert System.read(tmp_path, PYTHONS["cpu-x86"]).board == "Jetson [31m? Orin"


def test_the_running_interpreter_is_described():
    facts = PythonFacts.read()
    assert facts.version >= (3, 9) and "numpy" in facts.packages and facts.machine
    assert facts.system_site or facts.venv


@pytest.mark.parametrize(
    "text, version",
    [
        ("10.3.0.30-1+cuda12.5", (10, 3, 0, 30)),
        ("6.2+b77", (6, 2)),
        ("", ()),
        (None, ()),
        ("TempVersion", ()),
        ("v8.6", (8, 6)),
    ],
)
def test_versions_are_their_leading_numbers(text, version):
    assert version_of(text) == version
