"""Facts of a machine, read from its files, for `doctor` and its report.

No program is run and no heavy module is imported. Every read is bounded. A file that is missing, unreadable or
malformed gives None. The facts of the running interpreter are apart, in `PythonFacts`. So the files of another system
can be read here: `System.read(root, python=...)`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from t2v_edge.device.jetpack import JetPack, release_of, version_of
from t2v_edge.engine.tensorrt.api import MODULES

MAX_BYTES = 64 << 10
MAX_DPKG_BYTES = 64 << 20
MAX_CPUINFO_BYTES = 1 << 20
MAX_GPUS = 64
MAX_TEXT = 200

PACKAGES = (
    "t2v-edge numpy tokenizers onnxruntime onnxruntime-gpu openvino cuda-python "
    "cuda-bindings tensorrt tensorrt-rtx opencv-python-headless av"
).split()
"""Python packages whose versions are reported."""

_DPKG = re.compile(r"nvidia-jetpack|nvidia-l4t-core|libnvinfer\d+|python3-libnvinfer|cuda-cudart-\d+-\d+")


@dataclass(frozen=True)
class PythonModule:
    """A Python module that can be imported. version: None if it has none. folder: where its file is."""

    version: Optional[str]
    folder: str

    @property
    def of_system(self) -> bool:
        """Whether the distribution installed it, and not pip."""
        return "dist-packages" in self.folder and self.folder.startswith("/usr/lib/")


@dataclass(frozen=True)
class PythonFacts:
    """Facts of a Python interpreter.

    machine: the architecture, such as aarch64.
    prefix: its environment's folder.
    venv: whether it is a virtual environment.
    system_site: whether it sees the system's packages. Always true outside a virtual environment.
    packages: the versions of the installed `PACKAGES`, by name.
    tensorrt, tensorrt_rtx: their modules.
    """

    version: tuple[int, int, int]
    machine: str
    prefix: str = "/usr"
    venv: bool = False
    system_site: bool = True
    packages: Mapping[str, str] = field(default_factory=dict)
    tensorrt: Optional[PythonModule] = None
    tensorrt_rtx: Optional[PythonModule] = None

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))

    @classmethod
    def read(cls) -> PythonFacts:
        """Read the facts of the running interpreter."""
        venv = sys.prefix != sys.base_prefix
        settings = _read(Path(sys.prefix) / "pyvenv.cfg") or ""
        seen = re.search(r"^\s*include-system-site-packages\s*=\s*true\s*$", settings, re.IGNORECASE | re.MULTILINE)
        packages = {name: version for name in PACKAGES if (version := _package(name)) is not None}
        return cls(
            version=(sys.version_info[0], sys.version_info[1], sys.version_info[2]),
            machine=platform.machine(),
            prefix=sys.prefix,
            venv=venv,
            system_site=not venv or seen is not None,
            packages=packages,
            tensorrt=_module("tensorrt"),
            tensorrt_rtx=_module("tensorrt-rtx"),
        )


@dataclass(frozen=True)
class NvpModelMode:
    """A mode of nvpmodel."""

    id: int
    name: str


@dataclass(frozen=True)
class System:
    """Facts of a machine. Sizes in bytes. None means unknown, or that the machine has no such thing.

    l4t: the release of Jetson Linux, such as 36.4.3.
    jetpack: the version of the package nvidia-jetpack.
    board, compatible: model and list of compatible devices, from the device tree.
    power_modes, power_mode: nvpmodel's modes, and the present one.
    cuda: the toolkit's version.
    tensorrt, tensorrt_bindings: the distribution's packages of libnvinfer and of its Python module.
    driver, gpus: NVIDIA's.
    system_python: the version of /usr/bin/python3.
    """

    python: PythonFacts
    l4t: Optional[str] = None
    jetpack: Optional[str] = None
    board: Optional[str] = None
    compatible: tuple[str, ...] = ()
    power_modes: tuple[NvpModelMode, ...] = ()
    power_mode: Optional[NvpModelMode] = None
    cuda: Optional[str] = None
    tensorrt: Optional[str] = None
    tensorrt_bindings: Optional[str] = None
    driver: Optional[str] = None
    gpus: tuple[str, ...] = ()
    system_python: Optional[tuple[int, ...]] = None
    os: Optional[str] = None
    cpu: Optional[str] = None
    cores: Optional[int] = None
    memory_bytes: Optional[int] = None
    available_bytes: Optional[int] = None
    swap_bytes: Optional[int] = None

    @property
    def is_jetson(self) -> bool:
        return self.l4t is not None or any(name.startswith("nvidia,tegra") for name in self.compatible)

    @property
    def release(self) -> Optional[JetPack]:
        """The JetPack release, by its package or else by its Jetson Linux."""
        return release_of(self.l4t, self.jetpack)

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        found = asdict(self)
        found["release"] = None if self.release is None else self.release.version
        return found

    @classmethod
    def read(cls, root: Path = Path("/"), python: Optional[PythonFacts] = None) -> System:
        """Read the files under `root`. python: by default the running interpreter."""
        packages = _dpkg(_read(root / "var/lib/dpkg/status", MAX_DPKG_BYTES) or "")
        memory = _pairs(_read(root / "proc/meminfo") or "")
        cpuinfo = _read(root / "proc/cpuinfo", MAX_CPUINFO_BYTES) or ""
        modes, default = _power_modes(_read(root / "etc/nvpmodel.conf", 1 << 20) or "")
        chosen = _first(r"pmode:0*(\d{1,4})", _read(root / "var/lib/nvpmodel/status"))
        wanted = int(chosen) if chosen else default
        board = _texts(root / "proc/device-tree/model")
        libraries = sorted((version_of(v), v) for n, v in packages.items() if re.fullmatch(r"libnvinfer\d+", n))
        return cls(
            python=PythonFacts.read() if python is None else python,
            l4t=_l4t(_read(root / "etc/nv_tegra_release") or "", packages),
            jetpack=_plain(packages.get("nvidia-jetpack")),
            board=board[0] if board else None,
            compatible=_texts(root / "proc/device-tree/compatible"),
            power_modes=modes,
            power_mode=next((mode for mode in modes if mode.id == wanted), None),
            cuda=_cuda(_read(root / "usr/local/cuda/version.json", 1 << 20) or "", packages),
            tensorrt=_plain(libraries[-1][1]) if libraries else None,
            tensorrt_bindings=_plain(packages.get("python3-libnvinfer")),
            driver=_first(r"Kernel Module(?: for \S+)?\s+(\d[\w.]*)", _read(root / "proc/driver/nvidia/version")),
            gpus=tuple(_gpus(root / "proc/driver/nvidia/gpus")),
            system_python=_system_python(root / "usr/bin/python3"),
            os=_first(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release")),
            cpu=_cpu(cpuinfo),
            cores=len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None,
            memory_bytes=_kilobytes(memory.get("MemTotal")),
            available_bytes=_kilobytes(memory.get("MemAvailable")),
            swap_bytes=_kilobytes(memory.get("SwapTotal")),
        )


def _read(path: Path, limit: int = MAX_BYTES) -> Optional[str]:
    """The first `limit` bytes of a regular file as text. None without such a file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None


def _first(pattern: str, text: Optional[str]) -> Optional[str]:
    found = re.search(pattern, text or "", re.MULTILINE)
    return _clean(found[1]) if found else None


def _clean(text: str) -> Optional[str]:
    """Printable text of bounded length, for terminals and reports. None if nothing is left."""
    kept = "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
    return " ".join(kept.split()).replace("\ufffd", "?") or None


def _plain(version: Optional[str]) -> Optional[str]:
    """``10.3.0.30-1+cuda12.5`` as ``10.3.0.30``."""
    return ".".join(map(str, version_of(version))) or None


def _texts(path: Path) -> tuple[str, ...]:
    """The NUL-terminated texts of a device tree property."""
    return tuple(text for part in (_read(path, 4096) or "").split("\0")[:MAX_GPUS] if (text := _clean(part)))


def _pairs(text: str) -> dict[str, str]:
    return {
        key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon
    }


def _kilobytes(value: Optional[str]) -> Optional[int]:
    found = re.fullmatch(r"(\d{1,15}) kB", value or "")
    return int(found[1]) * 1024 if found else None


def _dpkg(status: str) -> dict[str, str]:
    """The versions of the installed packages in `_DPKG`, by name, from dpkg's status file."""
    found = {}
    for name in re.finditer(r"^Package: ([a-z0-9][a-z0-9.+-]{0,99})$", status, re.MULTILINE):
        if _DPKG.fullmatch(name[1]) is None:
            continue
        entry = status[name.end() : name.end() + MAX_BYTES].partition("\n\n")[0]
        version = _first(r"^Version: (\S+)$", entry)
        if version and re.search(r"^Status: install ok installed$", entry, re.MULTILINE):
            found[name[1]] = version
    return found


def _l4t(release: str, packages: Mapping[str, str]) -> Optional[str]:
    """36.4.3 from ``# R36 (release), REVISION: 4.3, ...``, or from the package nvidia-l4t-core."""
    found = re.search(r"R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){0,2})", release)
    return f"{found[1]}.{found[2]}" if found else _plain(packages.get("nvidia-l4t-core"))


def _cuda(text: str, packages: Mapping[str, str]) -> Optional[str]:
    """The toolkit's version, from its version.json or from the package with its runtime library."""
    try:
        version = json.loads(text)["cuda"]["version"]
        if isinstance(version, str) and version_of(version):
            return _plain(version)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    found = sorted(tuple(map(int, name.split("-")[2:])) for name in packages if name.startswith("cuda-cudart-"))
    return ".".join(map(str, found[-1])) if found else None


def _power_modes(text: str) -> tuple[tuple[NvpModelMode, ...], Optional[int]]:
    """The modes of nvpmodel.conf, and the number of the first one after a boot."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([\w.-]{1,64})\s*>", text, re.MULTILINE)
    modes = tuple(NvpModelMode(int(number), name) for number, name in found[:MAX_GPUS])
    default = _first(r"^\s*<\s*PM_CONFIG\s+DEFAULT=(\d{1,4})\s*>", text)
    return modes, int(default) if default else None


def _gpus(folder: Path) -> Iterator[str]:
    try:
        names = sorted(entry.name for entry, _ in zip(os.scandir(folder), range(MAX_GPUS)))
    except OSError:
        return
    for name in names:
        model = _first(r"^Model:\s*(\S.*)$", _read(folder / name / "information"))
        if model:
            yield model


def _system_python(path: Path) -> Optional[tuple[int, ...]]:
    """(3, 10) if the link /usr/bin/python3 points to python3.10."""
    try:
        return version_of(_first(r"python(\d\.\d{1,3})$", os.readlink(path))) or None
    except (OSError, ValueError):
        return None


def _cpu(cpuinfo: str) -> Optional[str]:
    """The processor's name, or the part number of an Arm core."""
    name = _first(r"^model name\s*:\s*(\S.*)$", cpuinfo)
    part = _first(r"^CPU part\s*:\s*(0x[0-9a-f]{1,6})$", cpuinfo)
    return name or (f"Arm part {part}" if part else None)


def _package(name: str) -> Optional[str]:
    try:
        return _clean(metadata.version(name))
    except (metadata.PackageNotFoundError, OSError, ValueError, TypeError):
        return None


def _module(engine: str) -> Optional[PythonModule]:
    """The module of an engine, found without importing it."""
    for name in MODULES[engine]:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            continue
        if spec is not None and spec.origin:
            version = _first(r'^__version__\s*=\s*[\'"]([\w.+-]+)', _read(Path(spec.origin)))
            return PythonModule(version or _package(engine) or _package(name), str(Path(spec.origin).parent))
    return None
