"""Verdicts on recorded machines, each with the remedy that mends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from t2v_edge.bundle.manifest import FileEntry
from t2v_edge.device.profile import load_profile
from t2v_edge.device.system import PythonModule
from t2v_edge.doctor.checks import examine, examine_bundle, examine_device, guess_profile, needed_bytes, usable_engines
from t2v_edge.doctor.finding import FAIL, OK, WARN
from tests.t2v_edge.system_samples import PYTHONS, dist_packages, in_venv, read_system, without


def level(findings):
    return max((finding.level for finding in findings), key=[OK, WARN, FAIL].index)


def one(findings, code):
    found = [finding for finding in findings if finding.code == code]
    assert len(found) == 1, findings
    return found[0]


@pytest.mark.parametrize(
    "name, engines, worst",
    [
        ("jetpack-5.1-xavier", ("onnxruntime",), WARN),
        ("jetpack-5.1-orin", ("onnxruntime",), WARN),
        ("jetpack-6.0", ("onnxruntime", "tensorrt"), OK),
        ("jetpack-6.2", ("onnxruntime", "tensorrt"), WARN),
        ("jetpack-7.0", ("onnxruntime", "tensorrt"), WARN),
        ("jetpack-7.2", ("onnxruntime", "tensorrt"), WARN),
        ("desktop-rtx", ("onnxruntime", "tensorrt-rtx"), OK),
        ("cpu-x86", ("onnxruntime",), OK),
    ],
)
def test_a_machine_that_is_set_up_is_ready_with_the_engines_it_can_have(name, engines, worst):
    system = read_system(name)
    findings = examine(system)
    assert usable_engines(system) == engines and level(findings) == worst
    assert {f.code for f in findings if f.level == WARN} <= {"power-mode", "platform"}


@pytest.mark.parametrize(
    "name, remedy",
    [("jetpack-5.1-xavier", "JetPack 5 is the last for Xavier"), ("jetpack-5.1-orin", "flash JetPack 6.2 or newer")],
)
def test_jetpack_5_leaves_onnx_runtime_in_a_python_of_ones_own(name, remedy):
    platform = one(examine(read_system(name)), "platform")
    assert platform.level == WARN and "8.5.2 is older than 8.6" in platform.what and "only ONNX" in platform.what
    assert "--engine onnxruntime" in platform.remedy and remedy in platform.remedy
    own = read_system(name, version=(3, 8, 10), venv=False, packages={}, tensorrt=dist_packages("8.5.2.2", "3.8"))
    python = one(examine(own), "python")
    assert python.level == FAIL and "3.8.10 is older than 3.9" in python.what
    assert "python3.9 -m venv" in python.remedy and "t2v-edge[cpu]" in python.remedy
    assert usable_engines(own) == ()


@pytest.mark.parametrize("name", ["jetpack-6.0", "jetpack-6.2"])
@pytest.mark.parametrize("version", ["11.0.0.114", "11.4.1.9"])
def test_tensorrt_11_wheels_on_jetpack_6_are_refused(name, version):
    system = read_system(name, tensorrt=in_venv(version, "3.10"))
    finding = one(examine(system), "tensorrt-wheel")
    assert finding.level == FAIL and version in finding.what and "does not support JetPack 6" in finding.what
    assert finding.remedy.startswith("pip uninstall -y tensorrt ") and "--system-site-packages" in finding.remedy
    assert "tensorrt" not in usable_engines(system)


def test_a_wheel_of_another_release_than_jetpacks_is_refused_and_one_of_the_same_is_not():
    other = one(examine(read_system("jetpack-6.2", tensorrt=in_venv("10.9.0", "3.10"))), "tensorrt-wheel")
    assert other.level == FAIL and "is not the 10.3.0.30 that this JetPack has" in other.what
    same = read_system("jetpack-7.2", tensorrt=in_venv("10.16.2.10", "3.12"))
    assert "tensorrt" in usable_engines(same)


@pytest.mark.parametrize(
    "board, jetpack, version, fits",
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", "7.2.2", "11.4.1", True),
        ("NVIDIA Jetson AGX Thor Developer Kit", "7.2.2", "11.5.0", True),
        ("NVIDIA Jetson AGX Orin Developer Kit", "7.2.2", "11.4.0", False),
        ("NVIDIA Jetson AGX Orin Developer Kit", "7.2.1", "11.4.1", False),
        ("NVIDIA Jetson Orin Nano Developer Kit", "7.2.2", "11.4.1", False),
    ],
)
def test_tensorrt_11_is_taken_only_where_nvidia_supports_it(board, jetpack, version, fits):
    system = replace(read_system("jetpack-7.2", tensorrt=in_venv(version, "3.12")), board=board, jetpack=jetpack)
    assert ("tensorrt" in usable_engines(system)) is fits
    assert any(f.code == "tensorrt-wheel" for f in examine(system)) is not fits


@pytest.mark.parametrize(
    "name, cuda_python",
    [("jetpack-6.0", "12.2"), ("jetpack-6.2", "12.6"), ("jetpack-7.0", "13.0"), ("jetpack-7.2", "13.2")],
)
def test_an_environment_that_does_not_see_the_system_is_told_the_exact_command(name, cuda_python):
    system = read_system(name, system_site=False, tensorrt=None)
    finding = one(examine(system), "venv")
    assert finding.level == WARN and "does not see the system's packages" in finding.what
    assert finding.remedy == (
        "/usr/bin/python3 -m venv --system-site-packages ~/t2v && . ~/t2v/bin/activate && "
        f"pip install 't2v-edge[cpu,tensorrt]' 'cuda-python=={cuda_python}.*'"
    )
    assert usable_engines(system) == ("onnxruntime",)


def test_another_python_than_the_systems_cannot_have_jetpacks_tensorrt():
    system = read_system("jetpack-6.2", version=(3, 11, 9), tensorrt=None)
    finding = one(examine(system), "tensorrt")
    assert finding.level == WARN and "the system's Python 3.10 only, and this is Python 3.11.9" in finding.what
    assert "/usr/bin/python3 -m venv" in finding.remedy


def test_a_jetpack_without_tensorrt_is_told_what_to_install():
    bare = replace(read_system("jetpack-6.2", tensorrt=None), tensorrt=None, tensorrt_bindings=None)
    finding = one(examine(bare), "tensorrt")
    assert "TensorRT 10.3 is not installed" in finding.what and "sudo apt install tensorrt" in finding.remedy
    half = replace(read_system("jetpack-6.2", tensorrt=None, venv=False), tensorrt_bindings=None)
    assert "sudo apt install python3-libnvinfer" in one(examine(half), "tensorrt").remedy


@pytest.mark.parametrize("found, said", [(None, "is not installed"), ("13.0.3", "is of another CUDA than the 12.6.11")])
def test_tensorrt_needs_cuda_python_of_its_cuda(found, said):
    packages = without(PYTHONS["jetpack-6.2"].packages, "cuda-python", "cuda-bindings")
    system = read_system("jetpack-6.2", packages={**packages, **({"cuda-python": found} if found else {})})
    finding = one(examine(system), "cuda-python")
    assert finding.level == WARN and said in finding.what
    assert finding.remedy == "pip install 't2v-edge[tensorrt]' 'cuda-python==12.6.*'"
    assert usable_engines(system) == ("onnxruntime",)


@pytest.mark.parametrize(
    "name, command",
    [
        ("jetpack-6.2", "sudo nvpmodel -m 2 && sudo jetson_clocks"),
        ("jetpack-7.0", "sudo nvpmodel -m 0 && sudo jetson_clocks"),
        ("jetpack-5.1-orin", "sudo nvpmodel -m 0"),
        ("jetpack-5.1-xavier", "sudo nvpmodel -m 0"),
    ],
)
def test_a_slower_power_mode_is_told_how_to_leave_it(name, command):
    finding = one(examine(read_system(name)), "power-mode")
    assert finding.level == WARN and finding.remedy.startswith(command)


def test_the_fastest_power_mode_is_left_alone():
    assert one(examine(read_system("jetpack-6.0")), "power-mode").level == OK


def test_no_engine_at_all_fails():
    system = read_system("cpu-x86", packages={"numpy": "2.0"})
    finding = one(examine(system), "engines")
    assert finding.level == FAIL and finding.remedy == "pip install 't2v-edge[cpu]'" and usable_engines(system) == ()


def test_onnx_runtime_with_cuda_counts_where_there_is_a_driver():
    packages = {**without(PYTHONS["desktop-rtx"].packages, "onnxruntime"), "onnxruntime-gpu": "1.23.2"}
    assert usable_engines(read_system("desktop-rtx", packages=packages)) == (
        "onnxruntime",
        "onnxruntime-cuda",
        "tensorrt-rtx",
    )
    assert usable_engines(read_system("cpu-x86", packages=packages)) == ("onnxruntime",)


def test_an_idle_desktop_gpu_is_told_of_tensorrt_rtx():
    finding = one(examine(read_system("desktop-rtx", tensorrt_rtx=None)), "tensorrt-rtx")
    assert finding.level == WARN and "t2v-edge[rtx]" in finding.remedy


@pytest.mark.parametrize("name, said", [("jetpack-6.2", "does not run on a Jetson"), ("cpu-x86", "no NVIDIA driver")])
def test_tensorrt_rtx_runs_neither_on_a_jetson_nor_without_a_driver(name, said):
    system = read_system(name, tensorrt_rtx=PythonModule("1.7.1", "/home/user/t2v/lib/site-packages/tensorrt_rtx"))
    finding = one(examine(system), "tensorrt-rtx")
    assert finding.level == WARN and said in finding.what and "tensorrt-rtx" not in usable_engines(system)


def test_tensorrt_without_a_driver_cannot_run():
    system = read_system("cpu-x86", tensorrt=in_venv("10.13.0", "3.11"))
    assert "no NVIDIA driver" in one(examine(system), "tensorrt").what and usable_engines(system) == ("onnxruntime",)


def test_an_unknown_jetson_linux_is_said_to_be_unknown():
    system = replace(read_system("jetpack-7.2"), l4t="45.1.0", jetpack=None)
    assert "a JetPack release that is not known" in one(examine(system), "platform").what


@pytest.fixture
def manifest(tiny):
    """make(opset, precision, graph bytes): a manifest whose graphs are all so."""

    def make(opset=17, precision="fp32", size=1000):
        variants = {
            precision: {
                stage: replace(entry, opset=opset, precision=precision)
                for stage, entry in tiny.variants["fp32"].items()
            }
        }
        names = ["tokenizer.json", "golden.npz", *(e.file for e in variants[precision].values())]
        return replace(
            tiny.manifest,
            variants=variants,
            default=dict.fromkeys(tiny.manifest.stages, precision),
            files={name: FileEntry("0" * 64, size) for name in names},
        )

    return make


def test_too_little_free_memory_fails_with_the_figures(manifest):
    bundle = manifest(size=100_000_000)
    system = replace(read_system("jetpack-6.2"), available_bytes=500_000_000)
    finding = one(examine_bundle(system, bundle), "memory")
    assert needed_bytes(bundle) == (160 << 20) + 4 * 300_000_000
    assert finding.level == FAIL and "needs about 1368 MB" in finding.what and "500 of 7990 MB are free" in finding.what
    assert "isolate multi-user.target" in finding.remedy and "--recipe small" in finding.remedy
    assert one(examine_bundle(read_system("jetpack-6.2"), bundle), "memory").level == OK


def test_enough_to_play_and_not_to_build_warns(manifest):
    system = replace(read_system("jetpack-6.2"), available_bytes=1_000_000_000)
    finding = one(examine_bundle(system, manifest()), "memory")
    assert finding.level == WARN and "building its TensorRT engines about 1992 MB more" in finding.what
    cpu = replace(read_system("cpu-x86"), available_bytes=1_000_000_000)
    assert one(examine_bundle(cpu, manifest()), "memory").level == OK


@pytest.mark.parametrize(
    "name, opset, warned",
    [
        ("jetpack-6.0", 17, False),
        ("jetpack-6.0", 18, True),
        ("jetpack-6.2", 20, False),
        ("jetpack-6.2", 21, True),
        ("jetpack-7.2", 21, True),
        ("cpu-x86", 21, False),
        ("jetpack-5.1-orin", 21, False),
    ],
)
def test_graphs_newer_than_the_parser_are_told_how_to_export(name, opset, warned, manifest):
    findings = [f for f in examine_bundle(read_system(name), manifest(opset)) if f.code == "opset"]
    assert len(findings) == (3 if warned else 0)
    for finding in findings:
        assert f"opset {opset}" in finding.what and finding.level == WARN
        assert "t2v-edge export CHECKPOINT --device jetson-" in finding.remedy


def test_a_bundle_of_unsigned_int8_alone_has_nothing_for_tensorrt(manifest):
    findings = [
        f for f in examine_bundle(read_system("jetpack-6.2"), manifest(precision="int8-u8")) if f.code == "graphs"
    ]
    assert len(findings) == 3 and all("has only int8-u8" in f.what for f in findings)


@pytest.mark.parametrize(
    "name, profile",
    [
        ("jetpack-6.2", "jetson-orin-nano-8gb"),
        ("cpu-x86", "cpu"),
        ("jetpack-6.0", "jetson-agx-orin-64gb"),
        ("jetpack-5.1-xavier", "jetson-xavier-nx"),
        ("jetpack-5.1-orin", "jetson-agx-orin-32gb"),
        ("jetpack-7.0", "jetson-thor-t5000"),
    ],
)
def test_the_profile_of_a_board_is_found(name, profile):
    assert guess_profile(read_system(name)) == profile


def test_a_device_is_held_to_what_its_profile_promises():
    nano = load_profile("jetson-orin-nano-8gb")
    assert level(examine_device(read_system("jetpack-6.2"), nano)) == OK
    blind = read_system("jetpack-6.2", system_site=False, tensorrt=None)
    assert level(examine_device(blind, nano)) == FAIL
    wrong = examine_device(read_system("cpu-x86"), nano)
    assert level(wrong) == FAIL and "is a jetson, this machine is not" in wrong[0].what
    assert level(examine_device(read_system("cpu-x86"), load_profile("cpu"))) == OK
    assert level(examine_device(read_system("desktop-rtx"), load_profile("desktop-rtx"))) == OK
    headset = examine_device(read_system("cpu-x86"), load_profile("quest-3"))
    assert level(headset) == FAIL and "in its browser" in headset[0].what
