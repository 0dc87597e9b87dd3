"""Findings on TensorRT and TensorRT-RTX: whether a machine can use them, and the commands that help."""

from __future__ import annotations

from collections.abc import Iterator

from t2v_edge.device.jetpack import version_of
from t2v_edge.device.system import System
from t2v_edge.doctor.finding import FAIL, OK, WARN, Finding
from t2v_edge.engine.tensorrt.api import OLDEST

WHEELS_FROM = ((11, 4, 1), (7, 2, 2))
"""The oldest TensorRT wheel, and the oldest JetPack on AGX Orin and Thor, that NVIDIA supports with each other."""


def check_tensorrt(system: System) -> Iterator[Finding]:
    """Findings on TensorRT. It can be used if its Python module is there and all findings are ok."""
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
                f"TensorRT {system.tensorrt} is installed, but this Python does not see its module",
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
            f"the environment {python.prefix} does not see the system's packages, such as TensorRT {expected}",
            _environment(system),
        )
    else:
        yield Finding(
            "tensorrt",
            WARN,
            f"TensorRT {expected} is installed, but this Python does not find its module",
            "sudo apt install --reinstall python3-libnvinfer",
        )


def _wheel_fits(system: System, version: tuple[int, ...]) -> bool:
    """Whether a pip TensorRT of this version equals JetPack's, or is one that NVIDIA supports on this JetPack."""
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
        yield Finding("cuda-python", WARN, "cuda-python is not installed; TensorRT needs it", remedy)
    elif system.cuda and version_of(found)[:1] != version_of(system.cuda)[:1]:
        yield Finding(
            "cuda-python",
            WARN,
            f"cuda-python {found} is of another CUDA than the {system.cuda} that is installed",
            remedy,
        )
    else:
        yield Finding("cuda-python", OK, f"cuda-python {found}, CUDA {system.cuda or 'of the driver'}")


def check_rtx(system: System) -> Iterator[Finding]:
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
            f"TensorRT-RTX {module.version} can build engines here, but not run them: there is no NVIDIA driver",
            "run on a machine with an RTX GPU and NVIDIA's driver",
        )
    elif module is not None:
        yield Finding("tensorrt-rtx", OK, f"TensorRT-RTX {module.version or 'of unknown version'}")
        yield from _cuda_bindings(system)
    elif (system.gpus or system.driver) and not system.is_jetson and system.python.tensorrt is None:
        yield Finding(
            "tensorrt-rtx",
            WARN,
            "the GPU is not used: neither TensorRT-RTX nor TensorRT is installed",
            "pip install 't2v-edge[rtx]' (RTX 30 series and newer)",
        )


def _environment(system: System) -> str:
    """The commands that make a virtual environment which sees JetPack's TensorRT."""
    return (
        "/usr/bin/python3 -m venv --system-site-packages ~/t2v && . ~/t2v/bin/activate && "
        f"pip install 't2v-edge[cpu,tensorrt]' {_cuda_python(system)}"
    )


def _cuda_python(system: System) -> str:
    """The requirement of cuda-python, at the toolkit's minor release: a newer one may need a newer driver."""
    cuda = version_of(system.cuda) or version_of(system.release.cuda if system.release else None)
    return f"'cuda-python=={cuda[0]}.{cuda[1]}.*'" if len(cuda) > 1 else "cuda-python"
