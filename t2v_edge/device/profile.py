"""Device profiles: the memory, rates and software of a device as data, with the source of every number.

A profile is a TOML file: ``devices/NAME.toml`` in this project, or a user's own. Every table with numbers names its
source, and numbers without a source are refused. A number that nobody could source is left out, and reads as None.
`devices/README.md` describes the format.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from t2v_edge.errors import DeviceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("cpu", "jetson", "desktop", "server", "headset")
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "int8-u8")
RATES = ("fp32", "fp16", "bf16", "fp8", "int8")
MAX_FILE_BYTES = 64 << 10
MAX_ROWS = 64


@dataclass(frozen=True)
class PowerMode:
    """A power mode. id: nvpmodel's. watts: its budget, None for no budget. The rest are its limits."""

    name: str
    id: int
    watts: Optional[float]
    cpu_cores: int
    cpu_mhz: float
    gpu_tpcs: int
    gpu_mhz: float
    memory_mhz: float


@dataclass(frozen=True)
class Software:
    """A software release of the device, such as JetPack 6.2. opset_cap: the newest ONNX opset its engine parses."""

    name: str
    engine: str
    version: str
    opset_cap: int


@dataclass(frozen=True)
class DeviceProfile:
    """The facts of a device. None means that no source was found.

    precisions: those that an engine of this device runs, most exact first.
    memory_bytes: the memory that CPU and GPU share, or a graphics card's own.
    link_gb_s: the link between a card and the CPU's memory, one way.
    dense_tops: 10^12 operations a second by precision, without sparsity, of the GPU or CPU (no DLA or NPU). A
        multiply-add counts as two.
    sources: the source of each table of the file. A row with its own source is named ``TABLE.ROW``.
    """

    name: str
    title: str
    kind: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    software: tuple[Software, ...]
    memory_bytes: Optional[int] = None
    bandwidth_gb_s: Optional[float] = None
    compute_capability: Optional[str] = None
    gpu_tpcs: Optional[int] = None
    gpu_mhz: Optional[float] = None
    memory_mhz: Optional[float] = None
    link_gb_s: Optional[float] = None
    dense_tops: Mapping[str, float] = field(default_factory=dict)
    power_modes: tuple[PowerMode, ...] = ()
    power_mode: Optional[str] = None
    refresh_rates_hz: tuple[float, ...] = ()
    hardware_encoder: Optional[bool] = None
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def shares_memory(self) -> bool:
        """Whether the CPU reads frames in the memory where they are computed, without a copy."""
        return self.kind in ("cpu", "jetson", "headset")

    @property
    def opset_cap(self) -> int:
        """The newest ONNX opset that every software release of this device parses."""
        return min(line.opset_cap for line in self.software)

    def at_mode(self, mode_name: str) -> DeviceProfile:
        """This device in one power mode, named ``NAME@MODE``. Raises `DeviceError` for an unknown mode.

        Dense rates scale with GPU clock and TPCs, and bandwidth with the memory clock.
        """
        modes = {mode.name: mode for mode in self.power_modes}
        if mode_name not in modes:
            offer = f"choose one of {', '.join(modes)}" if modes else "it has no power modes"
            raise DeviceError(f"device {self.name} has no power mode {mode_name!r}: {offer}")
        mode = modes[mode_name]
        rates, bandwidth = self.dense_tops, self.bandwidth_gb_s
        if self.gpu_tpcs and self.gpu_mhz:
            scale = mode.gpu_tpcs * mode.gpu_mhz / (self.gpu_tpcs * self.gpu_mhz)
            rates = MappingProxyType({precision: _rounded(rate * scale) for precision, rate in rates.items()})
        if bandwidth is not None and self.memory_mhz:
            bandwidth = _rounded(bandwidth * mode.memory_mhz / self.memory_mhz)
        return replace(
            self,
            name=f"{self.name}@{mode.name}",
            power_mode=mode.name,
            dense_tops=rates,
            bandwidth_gb_s=bandwidth,
            gpu_tpcs=mode.gpu_tpcs if self.gpu_tpcs else None,
            gpu_mhz=mode.gpu_mhz if self.gpu_mhz else None,
            memory_mhz=mode.memory_mhz if self.memory_mhz else None,
            power_modes=(),
        )

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        data["dense_tops"], data["sources"] = dict(self.dense_tops), dict(self.sources)
        data["power_modes"] = [dict(vars(mode)) for mode in self.power_modes]
        data["software"] = [dict(vars(line)) for line in self.software]
        data["opset_cap"] = self.opset_cap
        return data


def _rounded(value: float) -> float:
    """The value with four digits, more than any data sheet has."""
    return float(f"{value:.4g}")


def list_profiles() -> tuple[str, ...]:
    """The names of the package's profiles, sorted."""
    return tuple(sorted(path.stem for path in _profile_folder().glob("*.toml")))


def load_profile(name: str) -> DeviceProfile:
    """Read a profile: a name from `list_profiles`, ``NAME@MODE`` for one power mode, or the path of a ``.toml`` file.

    Raises `DeviceError` for an unknown name (with similar ones) or a malformed file.
    """
    if name.endswith(".toml"):
        return parse_profile(_read(Path(name)), name)
    base, at, mode = name.partition("@")
    known = list_profiles()
    if base not in known:
        near = difflib.get_close_matches(base.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise DeviceError(f"no device profile is named {base!r}: {hint} A file of your own is given as ./NAME.toml")
    profile = parse_profile(_read(_profile_folder() / f"{base}.toml"), base)
    return profile.at_mode(mode) if at else profile


def parse_profile(text: str, where: str) -> DeviceProfile:
    """Parse a profile's TOML. where: its name in errors. Raises `DeviceError`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"device profile {where} is not TOML: {error}") from error
    except RecursionError as error:
        raise DeviceError(f"device profile {where} is nested too deeply") from error
    top = _Table(data, where, "")
    citations = top.table("sources", required=True)
    reader = _CitationReader({key: citations.text(key) for key in citations.data}, {})
    profile = _build(top, reader)
    top.finish()
    return profile


def _build(top: _Table, reader: _CitationReader) -> DeviceProfile:
    memory, gpu = reader.sourced(top.table("memory")), reader.sourced(top.table("gpu"))
    rates, display = reader.sourced(top.table("dense_tops")), reader.sourced(top.table("display"))
    video, link = reader.sourced(top.table("video")), reader.sourced(top.table("link"))
    memory_bytes = memory.number("bytes", 1 << 20, 1 << 44, integer=True)
    tpcs = gpu.number("tpcs", 1, 4096, integer=True)
    dense = {rate: rates.number(rate, 1e-3, 1e6) for rate in RATES}
    profile = DeviceProfile(
        name=top.text("name"),
        title=top.text("title"),
        kind=top.choice("kind", KINDS),
        engines=top.texts("engines"),
        precisions=top.texts("precisions", PRECISIONS),
        notes=top.text("notes", required=False),
        software=tuple(_software(row, reader) for row in top.rows("software", required=True)),
        power_modes=tuple(_power_mode(row, reader) for row in top.rows("power_mode")),
        memory_bytes=None if memory_bytes is None else int(memory_bytes),
        bandwidth_gb_s=memory.number("bandwidth_gb_s", 0.1, 1e5),
        memory_mhz=memory.number("mhz", 1, 1e5),
        link_gb_s=link.number("bandwidth_gb_s", 0.1, 1e5),
        compute_capability=gpu.text("compute_capability", required=False) or None,
        gpu_tpcs=None if tpcs is None else int(tpcs),
        gpu_mhz=gpu.number("mhz", 1, 1e5),
        dense_tops=MappingProxyType({rate: value for rate, value in dense.items() if value is not None}),
        refresh_rates_hz=display.numbers("refresh_rates_hz", 1, 1000),
        hardware_encoder=video.flag("hardware_encoder"),
        sources=MappingProxyType(reader.used),
    )
    for table in (memory, gpu, rates, display, video, link):
        table.finish()
    names = [mode.name for mode in profile.power_modes]
    if len(set(names)) != len(names):
        raise DeviceError(f"device profile {top.where}: two power modes share a name in {names}")
    return profile


def _software(row: _Table, reader: _CitationReader) -> Software:
    line = Software(row.text("name"), row.text("engine"), row.text("version"), int(row.needed("opset_cap", 13, 99)))
    reader.sourced(row).finish()
    return line


def _power_mode(row: _Table, reader: _CitationReader) -> PowerMode:
    mode = PowerMode(
        name=row.text("name"),
        id=int(row.needed("id", 0, 255)),
        watts=row.number("watts", 0.1, 1000),
        cpu_cores=int(row.needed("cpu_cores", 1, 1024)),
        cpu_mhz=row.needed("cpu_mhz", 1, 1e5),
        gpu_tpcs=int(row.needed("gpu_tpcs", 1, 4096)),
        gpu_mhz=row.needed("gpu_mhz", 1, 1e5),
        memory_mhz=row.needed("memory_mhz", 1, 1e5),
    )
    reader.sourced(row).finish()
    return mode


class _Table:
    """A reader of a TOML table. It checks values, and `finish` refuses unknown keys."""

    def __init__(self, data: Mapping[str, Any], where: str, path: str) -> None:
        self.data, self.where, self.path = data, where, path
        self.known: list[str] = []

    def fail(self, key: str, message: str) -> DeviceError:
        place = f"{self.path}.{key}" if self.path else key
        return DeviceError(f"device profile {self.where}: {place} {message}; devices/README.md describes the format")

    def get(self, key: str, required: bool) -> Any:
        self.known.append(key)
        if required and key not in self.data:
            raise self.fail(key, "is missing")
        return self.data.get(key)

    def text(self, key: str, required: bool = True) -> str:
        value = self.get(key, required)
        if value is None:
            return ""
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, f"must be a text, not {value!r:.60}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in choices:
            raise self.fail(key, f"is {value!r:.60}, which is not one of {', '.join(choices)}")
        return value

    def texts(self, key: str, choices: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = self.get(key, required=True)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise self.fail(key, "must be a list of at least one text")
        for item in value:
            if choices and item not in choices:
                raise self.fail(key, f"names {item!r:.60}, which is not one of {', '.join(choices)}")
        return tuple(value)

    def number(self, key: str, low: float, high: float, integer: bool = False) -> Optional[float]:
        value = self.get(key, required=False)
        return None if value is None else self._checked(key, value, low, high, integer)

    def needed(self, key: str, low: float, high: float) -> float:
        return self._checked(key, self.get(key, required=True), low, high, integer=False)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        value = self.get(key, required=False) or []
        if not isinstance(value, list) or len(value) > MAX_ROWS:
            raise self.fail(key, f"must be a list of at most {MAX_ROWS} numbers")
        return tuple(self._checked(key, item, low, high, integer=False) for item in value)

    def flag(self, key: str) -> Optional[bool]:
        value = self.get(key, required=False)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r:.60}")
        return value

    def table(self, key: str, required: bool = False) -> _Table:
        value = self.get(key, required)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, "must be a table")
        return _Table(value or {}, self.where, key)

    def rows(self, key: str, required: bool = False) -> list[_Table]:
        value = self.get(key, required) or []
        if not isinstance(value, list) or len(value) > MAX_ROWS or not all(isinstance(row, dict) for row in value):
            raise self.fail(key, f"must be at most {MAX_ROWS} tables, written [[{key}]]")
        if required and not value:
            raise self.fail(key, "needs at least one row")
        return [_Table(row, self.where, f"{key}.{row.get('name', i)}") for i, row in enumerate(value)]

    def finish(self) -> None:
        for key in self.data:
            if key not in self.known:
                near = difflib.get_close_matches(key, self.known, n=1)
                raise self.fail(key, "is not known" + (f": did you mean {near[0]}?" if near else ""))

    def _checked(self, key: str, value: Any, low: float, high: float, integer: bool) -> float:
        kinds = (int,) if integer else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            wanted = "a whole number" if integer else "a number"
            raise self.fail(key, f"must be {wanted} from {low:g} to {high:g}, not {value!r:.60}")
        return value


@dataclass(frozen=True)
class _CitationReader:
    """The file's citations by key, and the used ones by table."""

    citations: Mapping[str, str]
    used: dict[str, str]

    def sourced(self, table: _Table) -> _Table:
        """Check that a table with values names a source that the file cites."""
        if table.data:
            key = table.text("source")
            if key not in self.citations:
                known = ", ".join(self.citations) or "none"
                raise table.fail("source", f"is {key!r:.60}, which [sources] does not cite (it cites {known})")
            citation, group = self.citations[key], table.path.split(".")[0]
            self.used[group if self.used.get(group, citation) == citation else table.path] = citation
        return table


def _profile_folder() -> Path:
    """The folder of the profiles: inside an installed package, next to it in the source tree."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "devices"
    return inside if inside.is_dir() else here.parent / "devices"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DeviceError(f"device profile {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise DeviceError(f"device profile {path} is larger than {MAX_FILE_BYTES} bytes: is it a profile?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DeviceError(f"device profile {path} is not UTF-8 text") from error
