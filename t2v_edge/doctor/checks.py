"""Findings on a machine, on a bundle and on a device profile, each with the commands that help.

All functions are pure: of a `System`, a manifest and a profile. A machine recorded elsewhere can so be examined here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Optional

from t2v_edge.bundle.manifest import Manifest
from t2v_edge.device.jetpack import version_of
from t2v_edge.device.profile import DeviceProfile, list_profiles
from t2v_edge.device.system import System
from t2v_edge.doctor.finding import FAIL, OK, WARN, Finding
from t2v_edge.doctor.tensorrt import check_rtx, check_tensorrt
from t2v_edge.engine.tensorrt.api import OLDEST, OPSET_CAPS, RUNS
from t2v_edge.spec import STAGES

OLDEST_PYTHON = (3, 9)
RUN_BASE_BYTES = 160 << 20
RUN_PER_GRAPH_BYTE = 4
"""Memory to play a bundle on a CPU: a base, and a multiple of its graphs' size. The rule is a little above the peaks
measured with three models on ONNX Runtime and OpenVINO."""

BUILD_BYTES = 1900 << 20
"""Memory that TensorRT's builder takes besides, for its library of kernels. From a published log of TensorRT 10.3.0 on
an Orin Nano 8GB, not measured by us."""

BOARDS = (
    ("AGX Orin", "jetson-agx-orin-{}gb", (32, 64)),
    ("Orin NX", "jetson-orin-nx-{}gb", (8, 16)),
    ("Orin Nano", "jetson-orin-nano-{}gb", (4, 8)),
    ("Thor", "jetson-thor-t5000", ()),
    ("AGX Xavier", "jetson-agx-xavier", ()),
    ("Xavier NX", "jetson-xavier-nx", ()),
)
"""Words in a board's model name, the name of its profile, and the memory sizes it is sold with, in gigabytes."""


def examine(system: System) -> tuple[Finding, ...]:
    """Findings on a machine, without a bundle."""
    found = (
        *_python(system),
        *_platform(system),
        *check_tensorrt(system),
        *check_rtx(system),
        *_engines(system),
        *_power(system),
    )
    return tuple(dict.fromkeys(found))


def usable_engines(system: System) -> tuple[str, ...]:
    """Names of the engines that should work on the machine. No library is loaded."""
    if system.python.version < OLDEST_PYTHON:
        return ()
    packages = system.python.packages
    found = [
        name
        for name, needed in (("onnxruntime", ("onnxruntime", "onnxruntime-gpu")), ("openvino", ("openvino",)))
        if any(package in packages for package in needed)
    ]
    found += ["onnxruntime-cuda"] if "onnxruntime-gpu" in packages and (system.gpus or system.driver) else []
    found += ["tensorrt"] if all(f.level == OK for f in check_tensorrt(system)) and system.python.tensorrt else []
    found += ["tensorrt-rtx"] if all(f.level == OK for f in check_rtx(system)) and system.python.tensorrt_rtx else []
    return tuple(found)


def examine_bundle(system: System, manifest: Manifest) -> tuple[Finding, ...]:
    """Findings on a bundle, before anything is run: memory, and graphs that TensorRT takes."""
    return (*_memory(system, manifest), *_graphs(system, manifest))


def examine_device(system: System, profile: DeviceProfile) -> tuple[Finding, ...]:
    """Whether the machine is of the profile's kind, and has the profile's first engine."""
    name, wanted, usable = profile.name, profile.engines[0], usable_engines(system)
    if profile.kind == "desktop" and "tensorrt-rtx" in usable:
        wanted = "tensorrt-rtx"
    if profile.kind == "headset":
        what = f"{name} plays a bundle in its browser, which the doctor cannot examine"
        remedy = "run t2v-edge doctor on the machine that serves it, without --device"
    elif (profile.kind == "jetson") != system.is_jetson and profile.kind != "cpu":
        what = f"{name} is a {profile.kind}, this machine is not"
        remedy = "run t2v-edge doctor on the device itself, or give another --device"
    elif wanted not in usable:
        what = f"{name} should run {wanted}, which cannot be used here yet"
        remedy = "follow the findings on it"
    else:
        return (Finding("device", OK, f"{wanted} can be used, as {name} expects"),)
    return (Finding("device", FAIL, what, remedy),)


def needed_bytes(manifest: Manifest) -> int:
    """An estimate of the memory that the bundle's default variants take on a CPU."""
    graphs = sum(manifest.files[manifest.variants[v][stage].file].bytes for stage, v in manifest.default.items())
    return RUN_BASE_BYTES + RUN_PER_GRAPH_BYTE * graphs


def guess_profile(system: System) -> Optional[str]:
    """The name of this board's device profile, None if none is known."""
    for text, profile, sizes in BOARDS:
        if text in (system.board or ""):
            gigabytes = (system.memory_bytes or 0) / 1e9
            # Linux sees a little less than the module has.
            size = next((s for s in sizes if gigabytes <= s * 1.08), sizes[-1] if sizes else 0)
            name = profile.format(size)
            return name if name in list_profiles() else None
    return None if system.is_jetson else "cpu"


def _python(system: System) -> Iterator[Finding]:
    python = system.python
    kind = f"in the virtual environment {python.prefix}" if python.venv else "outside of a virtual environment"
    if python.version >= OLDEST_PYTHON:
        yield Finding("python", OK, f"Python {python.text}, {kind}")
        return
    remedy = "install Python 3.9 or newer, and pip install 't2v-edge[cpu]' with it"
    if system.is_jetson:
        remedy = (
            "sudo apt install python3.9 python3.9-venv && python3.9 -m venv ~/t2v && . ~/t2v/bin/activate && "
            "pip install 't2v-edge[cpu]'"
        )
    yield Finding("python", FAIL, f"Python {python.text} is older than 3.9, the oldest that t2v-edge runs on", remedy)


def _platform(system: System) -> Iterator[Finding]:
    if not system.is_jetson:
        where = f"{system.os or 'an unknown system'} on {system.python.machine}"
        if system.gpus or system.driver:
            gpus = ", ".join(system.gpus) or "a GPU without a name"
            yield Finding("platform", OK, f"{where}, {gpus}, NVIDIA driver {system.driver or 'of unknown version'}")
        else:
            yield Finding("platform", OK, f"{where}, no NVIDIA driver: the CPU does the work")
        return
    board, release = system.board or "a Jetson of unknown model", system.release
    if release is None:
        yield Finding(
            "platform",
            WARN,
            f"{board}, Jetson Linux {system.l4t or 'of unknown release'}, which belongs to "
            "a JetPack release that is not known here",
            "upgrade t2v-edge, or follow the other findings",
        )
        return
    named = f"{board}, JetPack {system.jetpack or release.version} (Jetson Linux {system.l4t or 'unknown'})"
    if version_of(release.version) >= (6,):
        yield Finding("platform", OK, named)
        return
    remedy = "take --engine onnxruntime; for TensorRT, flash JetPack 6.2 or newer"
    if "tegra194" in " ".join(system.compatible) or "Xavier" in board:
        remedy = "take --engine onnxruntime; JetPack 5 is the last for Xavier"
    yield Finding(
        "platform",
        WARN,
        f"{named}: its TensorRT {release.tensorrt} is older than 8.6, so that only ONNX "
        "Runtime on the CPU is left, in your own Python 3.9 or newer",
        remedy,
    )


def _engines(system: System) -> Iterator[Finding]:
    found = usable_engines(system)
    if found:
        yield Finding("engines", OK, f"can be used: {', '.join(found)}")
    else:
        yield Finding("engines", FAIL, "no inference engine can be used", "pip install 't2v-edge[cpu]'")


def _power(system: System) -> Iterator[Finding]:
    mode, modes = system.power_mode, system.power_modes
    if mode is None or not modes:
        return
    # The mode's number does not rank it: MAXN is 0 on some boards, MAXN_SUPER 2 on others.
    best = next((m for name in ("MAXN_SUPER", "MAXN") for m in modes if m.name == name), None)
    best = best or max(modes, key=lambda m: _watts(m.name))
    if mode == best or (_watts(mode.name) and _watts(mode.name) == _watts(best.name)):
        yield Finding("power-mode", OK, f"power mode {mode.name}; sudo jetson_clocks holds the clocks at their highest")
    else:
        yield Finding(
            "power-mode",
            WARN,
            f"power mode {mode.name}, {best.name} is faster",
            f"sudo nvpmodel -m {best.id} && sudo jetson_clocks (more power and heat; it may ask to reboot)",
        )


def _watts(mode: str) -> int:
    """The watts in a mode's name: 30 of MODE_30W_4CORE, 0 if it has none."""
    found = re.search(r"(\d{1,3})W", mode)
    return int(found[1]) if found else 0


def _memory(system: System, manifest: Manifest) -> Iterator[Finding]:
    available, needed = system.available_bytes, needed_bytes(manifest)
    if available is None:
        return
    figures = f"{_megabytes(available)} of {_megabytes(system.memory_bytes or 0)} MB are free"
    stop = "stop other programs"
    if system.is_jetson:
        stop = "sudo systemctl isolate multi-user.target (stops the desktop; graphical.target starts it again)"
    if available < needed:
        yield Finding(
            "memory",
            FAIL,
            f"the bundle needs about {_megabytes(needed)} MB to play, {figures}",
            f"{stop}, or export with --recipe small or fewer variants",
        )
    elif system.is_jetson and "tensorrt" in usable_engines(system) and available < needed + BUILD_BYTES:
        yield Finding(
            "memory",
            WARN,
            f"the bundle needs about {_megabytes(needed)} MB to play, and building its "
            f"TensorRT engines about {_megabytes(BUILD_BYTES)} MB more; {figures}",
            f"before t2v-edge build: {stop}",
        )
    else:
        yield Finding("memory", OK, f"the bundle needs about {_megabytes(needed)} MB to play, {figures}")


def _graphs(system: System, manifest: Manifest) -> Iterator[Finding]:
    """Findings on graphs that TensorRT here cannot take."""
    module = system.python.tensorrt
    version = version_of(module.version) if module else version_of(system.tensorrt)
    cap = next((cap for major, cap in OPSET_CAPS if version[:1] >= (major,)), None) if version else None
    if cap is None or version < OLDEST:
        return
    device = guess_profile(system) or "NAME"
    remedy = f"t2v-edge export CHECKPOINT --device {device} -o BUNDLE"
    named = f"TensorRT {'.'.join(map(str, version))}"
    for stage in STAGES:
        entries = {v: graphs[stage] for v, graphs in manifest.variants.items() if stage in graphs}
        taken = {v: entry for v, entry in entries.items() if entry.precision in RUNS}
        newer = sorted({entry.opset for entry in taken.values() if entry.opset > cap})
        if not taken:
            yield Finding(
                "graphs",
                WARN,
                f"{stage} has only {', '.join(entries)}, which {named} does not take; the CPU runs it",
                remedy,
            )
        elif newer and len(newer) == len({entry.opset for entry in taken.values()}):
            yield Finding(
                "opset",
                WARN,
                f"{stage} has opset {newer[0]}, {named} reads up to {cap} correctly; the CPU runs it",
                remedy,
            )


def _megabytes(size: int) -> int:
    return round(size / 1e6)
