"""What a machine's facts mean for t2v-edge: findings, each with the commands that mend it.

All here are pure functions of a `System` and of a bundle's manifest, so that machines recorded elsewhere can be judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Optional

from t2v_edge.bundle.manifest import Manifest
from t2v_edge.device.jetpack import version_of
from t2v_edge.device.profile import DeviceProfile, list_profiles
from t2v_edge.device.system import System
from t2v_edge.engine.tensorrt.api import OLDEST, OPSET_CAPS, RUNS
from t2v_edge.spec import STAGES

OK, WARN, FAIL = "ok", "warn", "fail"

OLDEST_PYTHON = (3, 9)
WHEELS_FROM = ((11, 4, 1), (7, 2, 2))
"""The oldest TensorRT wheel, and the oldest JetPack on AGX Orin and Thor, that NVIDIA supports with each other."""

RUN_BASE_BYTES = 160 << 20
RUN_PER_GRAPH_BYTE = 4
"""Memory to play a bundle on a CPU. Peak of the whole process, measured on x86-64, Python 3.11, one thread, default
variants: small (6.4 MB of graphs) 97 MiB on ONNX Runtime and 166 on OpenVINO, tiny (8.2) 100 and 162, reference (34.8)
251 and 265. The rule is above all six and below 1.2 times the larger of each pair."""

BUILD_BYTES = 1900 << 20
"""What TensorRT's builder takes besides, of the memory that CPU and GPU share: 927 + 968 MiB for its library of kernels
in a published log of TensorRT 10.3.0 on an Orin Nano 8GB. Not measured by us."""

BOARDS = (
    ("AGX Orin", "jetson-agx-orin-{}gb", (32, 64)),
    ("Orin NX", "jetson-orin-nx-{}gb", (8, 16)),
    ("Orin Nano", "jetson-orin-nano-{}gb", (4, 8)),
    ("Thor", "jetson-thor-t5000", ()),
    ("AGX Xavier", "jetson-agx-xavier", ()),
    ("Xavier NX", "jetson-xavier-nx", ()),
)
"""What a board's model holds, the name of its profile, and the gigabytes it comes with."""


@dataclass(frozen=True)
class Finding:
    """`code`: what it is about; `level`: ok, warn or fail; `what`: in words; `remedy`: what to type or do."""

    code: str
    level: str
    what: str
    remedy: Optional[str] = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(system: System) -> tuple[Finding, ...]:
    """What is found of a machine, whatever is to be played on it."""
    found = (
        *_python(system),
        *_platform(system),
        *_tensorrt(system),
        *_rtx(system),
        *_engines(system),
        *_power(system),
    )
    return tuple(dict.fromkeys(found))


def usable_engines(system: System) -> tuple[str, ...]:
    """Names of the engines that can work here, going by the facts alone; nothing is loaded."""
    if system.python.version < OLDEST_PYTHON:
        return ()
    packages = system.python.packages
    found = [
        name
        for name, needed in (("onnxruntime", ("onnxruntime", "onnxruntime-gpu")), ("openvino", ("openvino",)))
        if any(package in packages for package in needed)
    ]
    found += ["onnxruntime-cuda"] if "onnxruntime-gpu" in packages and (system.gpus or system.driver) else []
    found += ["tensorrt"] if all(f.level == OK for f in _tensorrt(system)) and system.python.tensorrt else []
    found += ["tensorrt-rtx"] if all(f.level == OK for f in _rtx(system)) and system.python.tensorrt_rtx else []
    return tuple(found)


def examine_bundle(system: System, manifest: Manifest) -> tuple[Finding, ...]:
    """What is found of a bundle on this machine, before anything is run."""
    return (*_memory(system, manifest), *_graphs(system, manifest))


def examine_device(system: System, profile: DeviceProfile) -> tuple[Finding, ...]:
    """Whether the machine is the kind of device that `profile` stands for, and has its first engine."""
    name = profile.name
    if profile.kind == "headset":
        return (
            Finding(
                "device",
                FAIL,
                f"{name} plays a bundle in its browser, which this cannot examine",
                "run t2v-edge doctor on the machine that serves it, without --device",
            ),
        )
    if (profile.kind == "jetson") != system.is_jetson and profile.kind != "cpu":
        return (
            Finding(
                "device",
                FAIL,
                f"{name} is a {profile.kind}, this machine is not",
                "run t2v-edge doctor on the device itself, or give another --device",
            ),
        )
    wanted = profile.engines[0]
    usable = usable_engines(system)
    if profile.kind == "desktop" and "tensorrt-rtx" in usable:
        wanted = "tensorrt-rtx"
    if wanted not in usable:
        return (
            Finding(
                "device",
                FAIL,
                f"{name} is meant to run {wanted}, which cannot be used here yet",
                "do what the findings on it say",
            ),
        )
    return (Finding("device", OK, f"as {name} expects, {wanted} can be used"),)


def needed_bytes(manifest: Manifest) -> int:
    """About how much memory playing the bundle's default variants takes on a CPU."""
    graphs = sum(manifest.files[manifest.variants[v][stage].file].bytes for stage, v in manifest.default.items())
    return RUN_BASE_BYTES + RUN_PER_GRAPH_BYTE * graphs


def guess_profile(system: System) -> Optional[str]:
    """The device profile of this board, None where none is known to fit."""
    for text, profile, sizes in BOARDS:
        if text in (system.board or ""):
            gigabytes = (system.memory_bytes or 0) / 1e9
            # Linux sees a little less than the module has.
            size = next((s for s in sizes if gigabytes <= s * 1.08), sizes[-1] if sizes else 0)
            name = profile.format(size)
            return name if name in list_profiles() else None
    return None if system.is_jetson else "cpu"


def _environment(system: System) -> str:
    """The commands for an environment that sees JetPack's TensorRT."""
    return (
        "/usr/bin/python3 -m venv --system-site-packages ~/t2v && . ~/t2v/bin/activate && "
        f"pip install 't2v-edge[cpu,tensorrt]' {_cuda_python(system)}"
    )


def _cuda_python(system: System) -> str:
    """cuda-python of the toolkit's own minor release; a newer one may ask the driver for what it does not have."""
    cuda = version_of(system.cuda) or version_of(system.release.cuda if system.release else None)
    return f"'cuda-python=={cuda[0]}.{cuda[1]}.*'" if len(cuda) > 1 else "cuda-python"


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
            "no JetPack release that is known here",
            "upgrade t2v-edge, or go by the other findings",
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
        "Runtime on the CPU is left, in a Python 3.9 or newer of your own",
        remedy,
    )


def _tensorrt(system: System) -> Iterator[Finding]:
    """Findings of TensorRT; all ok and a module there means that it can be used."""
    python, release = system.python, system.release
    module, packaged = python.tensorrt, version_of(system.tensorrt)
    if system.is_jetson and release is not None and version_of(release.version) < (6,) and module is None:
        return
    if module is None:
        yield from _tensorrt_absent(system)
        return
    version = version_of(module.version)
    if system.is_jetson and not module.of_system and not _wheel_fits(system, version):
        has = "JetPack's is hidden behind it" if packaged else "JetPack brings its own"
        why = (
            f"does not support JetPack {release.version}"
            if version >= (11,) and release is not None
            else f"is not the {system.tensorrt or (release.tensorrt if release else 'one')} that this JetPack has"
        )
        yield Finding(
            "tensorrt-wheel",
            FAIL,
            f"TensorRT {module.version or 'of unknown version'} in {module.folder} "
            f"came with pip and {why}: do not use it ({has})",
            "pip uninstall -y tensorrt tensorrt_cu12 tensorrt_cu12_libs tensorrt_cu12_bindings tensorrt_cu13 "
            f"tensorrt_cu13_libs tensorrt_cu13_bindings && {_environment(system)}",
        )
        return
    if version and version < OLDEST:
        yield Finding(
            "tensorrt",
            WARN,
            f"TensorRT {module.version} is older than 8.6, the oldest that is supported",
            "take --engine onnxruntime, or upgrade TensorRT (on a Jetson: JetPack 6.0 or newer)",
        )
        return
    if not system.is_jetson and not (system.gpus or system.driver):
        yield Finding(
            "tensorrt",
            WARN,
            f"TensorRT {module.version} cannot run: there is no NVIDIA driver",
            "install NVIDIA's driver, or take --engine onnxruntime",
        )
        return
    whose = "the system's" if module.of_system else f"in {module.folder}"
    yield Finding("tensorrt", OK, f"TensorRT {module.version or 'of unknown version'}, {whose}")
    yield from _cuda_bindings(system)


def _tensorrt_absent(system: System) -> Iterator[Finding]:
    python, release = system.python, system.release
    if not system.is_jetson:
        if system.tensorrt:
            yield Finding(
                "tensorrt",
                WARN,
                f"TensorRT {system.tensorrt} is installed, and this Python does not see its module",
                "/usr/bin/python3 -m venv --system-site-packages ~/t2v && "
                ". ~/t2v/bin/activate && pip install 't2v-edge[tensorrt]'",
            )
        return
    expected = system.tensorrt or (release.tensorrt if release else "")
    if not system.tensorrt and not system.tensorrt_bindings:
        yield Finding(
            "tensorrt",
            WARN,
            f"JetPack's TensorRT {expected}".rstrip() + " is not installed",
            "sudo apt update && sudo apt install tensorrt python3-libnvinfer",
        )
    elif not system.tensorrt_bindings and not python.venv:
        yield Finding(
            "tensorrt",
            WARN,
            f"TensorRT {expected} is installed without its Python module",
            "sudo apt update && sudo apt install python3-libnvinfer",
        )
    elif system.system_python and python.version[:2] != system.system_python[:2]:
        of_system = ".".join(map(str, system.system_python))
        yield Finding(
            "tensorrt",
            WARN,
            f"TensorRT {expected} has a module for the system's Python {of_system} only, "
            f"and this is Python {python.text}",
            _environment(system),
        )
    elif not python.system_site:
        yield Finding(
            "venv",
            WARN,
            f"the environment {python.prefix} does not see the system's packages, and so not TensorRT {expected}",
            _environment(system),
        )
    else:
        yield Finding(
            "tensorrt",
            WARN,
            f"TensorRT {expected} is installed, and this Python does not find its module",
            "sudo apt install --reinstall python3-libnvinfer",
        )


def _wheel_fits(system: System, version: tuple[int, ...]) -> bool:
    """Whether TensorRT of pip can be what this JetPack has, or one that NVIDIA supports on it."""
    oldest, jetpack = WHEELS_FROM
    if version >= (11,):
        here = version_of(system.jetpack) or version_of(system.release.version if system.release else None)
        board = system.board or ""
        return version >= oldest and here >= jetpack and ("AGX Orin" in board or "Thor" in board)
    packaged = version_of(system.tensorrt) or version_of(system.release.tensorrt if system.release else None)
    return not packaged or version[:2] == packaged[:2]


def _cuda_bindings(system: System) -> Iterator[Finding]:
    packages = system.python.packages
    found = packages.get("cuda-bindings") or packages.get("cuda-python")
    remedy = f"pip install 't2v-edge[tensorrt]' {_cuda_python(system)}"
    if found is None:
        yield Finding("cuda-python", WARN, "cuda-python is not installed, and TensorRT cannot be used without", remedy)
    elif system.cuda and version_of(found)[:1] != version_of(system.cuda)[:1]:
        yield Finding(
            "cuda-python",
            WARN,
            f"cuda-python {found} is of another CUDA than the {system.cuda} that is installed",
            remedy,
        )
    else:
        yield Finding("cuda-python", OK, f"cuda-python {found}, CUDA {system.cuda or 'of the driver'}")


def _rtx(system: System) -> Iterator[Finding]:
    module = system.python.tensorrt_rtx
    if module is not None and system.is_jetson:
        yield Finding(
            "tensorrt-rtx",
            WARN,
            "TensorRT-RTX does not run on a Jetson's GPU",
            "pip uninstall -y tensorrt-rtx, and take JetPack's TensorRT",
        )
    elif module is not None and not (system.gpus or system.driver):
        yield Finding(
            "tensorrt-rtx",
            WARN,
            f"TensorRT-RTX {module.version} can build engines here and not run them: there is no NVIDIA driver",
            "run on a machine with an RTX GPU and NVIDIA's driver",
        )
    elif module is not None:
        yield Finding("tensorrt-rtx", OK, f"TensorRT-RTX {module.version or 'of unknown version'}")
        yield from _cuda_bindings(system)
    elif (system.gpus or system.driver) and not system.is_jetson and system.python.tensorrt is None:
        yield Finding(
            "tensorrt-rtx",
            WARN,
            "the GPU stands idle: neither TensorRT-RTX nor TensorRT is installed",
            "pip install 't2v-edge[rtx]' (RTX 30 series and newer)",
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
    # The number does not say which is the fastest: MAXN is 0 on some boards, MAXN_SUPER 2 on others.
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
    """30 of MODE_30W_4CORE, 0 where the name has no watts."""
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
    """Whether TensorRT here can take the bundle's graphs."""
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
                f"{stage} has opset {newer[0]}, {named} reads up to {cap} rightly; the CPU runs it",
                remedy,
            )


def _megabytes(size: int) -> int:
    return round(size / 1e6)
