"""The manifest of a bundle: its contents, and how its three stages fit together (docs/formats.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from t2v_edge.errors import BundleError, SpecError
from t2v_edge.spec import STAGES, StageSpec, check_stages
from t2v_edge.util import strict_json
from t2v_edge.util.limits import MAX_FPS, MAX_SIDE

FORMAT = "t2v-bundle"
SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
MAX_FILE_BYTES = (1 << 31) - 1
MAX_TOTAL_BYTES = 4 << 30
MAX_FILES = 256
MAX_TOKENS = 4096
MAX_LAYERS = 4096
MAX_LAYER_NAME = 1000
MAX_GROUPS = 4096
MAX_COST = 1 << 50

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}"
_FILE = re.compile(rf"{_PART}(/{_PART}){{0,3}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


def require(condition: bool, message: str) -> None:
    """Raise a `BundleError` with `message` unless `condition` holds."""
    if not condition:
        raise BundleError(message)


def _sound(condition: bool, message: str) -> None:
    require(condition, f"manifest: {message}; export the bundle again")


def check_file_name(name: Any) -> str:
    """`name` if it is a plain relative path. Raises `BundleError` for ``../x``, ``/x``, ``C:x`` and the like."""
    good = isinstance(name, str) and _FILE.fullmatch(name) is not None
    require(good, f"file name {str(name)[:80]!r} is not allowed in a bundle (plain relative names only); do not use it")
    return str(name)


def _integer(data: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = data[key]
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _sound(good, f"{key} is {value!r}, expected an integer from {low} to {high}")
    return int(value)


def _text(data: Mapping[str, Any], key: str, pattern: re.Pattern[str] = _WORD) -> str:
    value = data[key]
    good = isinstance(value, str) and pattern.fullmatch(value) is not None
    _sound(good, f"{key} is {str(value)[:80]!r}, which is malformed")
    return str(value)


def _groups(value: Any) -> tuple[int, ...]:
    _sound(
        isinstance(value, list)
        and len(value) <= MAX_GROUPS
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value),
        f"condition_groups is {str(value)[:80]}, expected a list of at most {MAX_GROUPS} sizes",
    )
    return tuple(value)


@dataclass(frozen=True)
class VideoSpec:
    """The model's own video.

    height, width: pixels.
    fps: base frames a second.
    blend_steps: the base frames over which a new caption blends in.
    """

    height: int
    width: int
    fps: int
    blend_steps: int
    colour_range: str = "full"

    def to_json(self) -> dict[str, Any]:
        after = {"colour_range": self.colour_range, "blend_steps": self.blend_steps}
        return {"height": self.height, "width": self.width, "fps": self.fps, **after}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VideoSpec:
        _sound(data["colour_range"] == "full", "colour_range must be 'full'")
        return cls(
            _integer(data, "height", 1, MAX_SIDE),
            _integer(data, "width", 1, MAX_SIDE),
            _integer(data, "fps", 1, MAX_FPS),
            _integer(data, "blend_steps", 0, 10_000),
        )


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's file, the static token length, and the id that pads captions to it."""

    file: str
    tokens: int
    pad_id: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenizerSpec:
        return cls(
            check_file_name(data["file"]), _integer(data, "tokens", 1, MAX_TOKENS), _integer(data, "pad_id", 0, 1 << 30)
        )


COSTS = ("macs", "weight_bytes", "activation_bytes", "launches")
"""The costs of one run of a graph in its `GraphEntry`."""


@dataclass(frozen=True)
class GraphEntry:
    """One stage's graph in one variant, with the costs of one run. Costs of an older bundle are None (unknown).

    The last three are lower bounds for an engine that fuses well; docs/formats.md defines them.

    opset: of the default domain.
    float32_layers: the nodes with weights that stay in float32 in a graph of lower precision.
    macs: multiply-accumulates of matrix products and convolutions.
    weight_bytes, activation_bytes: bytes read and written.
    launches: the number of kernels.
    """

    file: str
    precision: str
    opset: int
    float32_layers: tuple[str, ...] = ()
    macs: Optional[int] = None
    weight_bytes: Optional[int] = None
    activation_bytes: Optional[int] = None
    launches: Optional[int] = None

    def to_json(self) -> dict[str, Any]:
        described: dict[str, Any] = {"file": self.file, "precision": self.precision, "opset": self.opset}
        if self.float32_layers:
            described["float32_layers"] = list(self.float32_layers)
        return {**described, **{key: value for key in COSTS if (value := getattr(self, key)) is not None}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphEntry:
        layers = data.get("float32_layers", [])
        _sound(
            isinstance(layers, list)
            and len(layers) <= MAX_LAYERS
            and all(isinstance(name, str) and 0 < len(name) <= MAX_LAYER_NAME for name in layers),
            f"float32_layers must be a list of at most {MAX_LAYERS} names",
        )
        costs = {key: _integer(data, key, 0, MAX_COST) for key in COSTS if key in data}
        return cls(
            check_file_name(data["file"]),
            _text(data, "precision"),
            _integer(data, "opset", 1, 99),
            tuple(layers),
            **costs,
        )


@dataclass(frozen=True)
class FileEntry:
    """SHA-256 (hex) and size of one file."""

    sha256: str
    bytes: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FileEntry:
        return cls(_text(data, "sha256", _SHA256), _integer(data, "bytes", 0, MAX_FILE_BYTES))


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle. Construction checks that they fit together, and raises `BundleError`.

    stages: stage name -> contract.
    variants: variant name -> stage name -> graph.
    default: stage name -> variant.
    files: file name -> hash and size. `write_bundle` fills it; leave it empty for an export.
    golden: the file of the golden vectors, if any.
    condition_groups: sizes of the groups of probabilities in a condition (see `settle_condition`). Empty if a condition
        is something else.
    quality, provenance: free JSON objects with finite numbers.
    """

    name: str
    video: VideoSpec
    tokenizer: TokenizerSpec
    stages: Mapping[str, StageSpec]
    variants: Mapping[str, Mapping[str, GraphEntry]]
    default: Mapping[str, str]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    golden: Optional[str] = None
    device: str = "cpu"
    condition_groups: tuple[int, ...] = ()
    quality: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _text({"name": self.name}, "name")
        self._check_stages()
        for variant, graphs in self.variants.items():
            _text({"variant": variant}, "variant")
            _sound(set(graphs) <= set(STAGES), f"variant {variant} names unknown stages")
        _sound(set(self.default) == set(STAGES), f"default must name {', '.join(STAGES)}")
        for stage, variant in self.default.items():
            _sound(
                stage in self.variants.get(variant, {}), f"default {stage} is {variant!r}, which is not in the bundle"
            )
        _sound(len(self.files) <= MAX_FILES, f"more than {MAX_FILES} files")
        total = sum(entry.bytes for entry in self.files.values())
        _sound(total <= MAX_TOTAL_BYTES, f"{total} bytes of files, at most {MAX_TOTAL_BYTES} are taken; drop variants")
        folded = {check_file_name(name).lower() for name in self.files}
        _sound(len(folded) == len(self.files), "two file names differ only in case; rename one")
        _sound(FILE_NAME not in folded, f"lists {FILE_NAME} itself")

    def _check_stages(self) -> None:
        _sound(set(self.stages) == set(STAGES), f"stages must be {', '.join(STAGES)}")
        try:
            check_stages(*(self.stages[stage] for stage in STAGES))
        except SpecError as error:
            raise BundleError(f"manifest: {error}; export the bundle again") from error
        for stage, spec in self.stages.items():
            _sound(spec.stage == stage, f"stage {stage} holds the contract of {spec.stage}")
        frame = next(t for t in self.stages["render"].results if t.name == "frame")
        _sound(
            frame.shape[1:3] == (self.video.height, self.video.width),
            f"the render stage makes {frame.shape}, the video is {self.video.height}x{self.video.width}",
        )
        condition = next(t for t in self.stages["text"].results if t.name == "condition")
        _sound(
            sum(self.condition_groups) in (0, condition.shape[1]),
            f"condition_groups make {sum(self.condition_groups)}, the condition has {condition.shape[1]} numbers",
        )
        ids = next(t for t in self.stages["text"].feeds if t.name == "input_ids")
        _sound(
            ids.shape == (1, self.tokenizer.tokens),
            f"the text stage takes {ids.shape}, the tokenizer gives {self.tokenizer.tokens}",
        )

    def needed_files(self) -> tuple[str, ...]:
        """Every file that the manifest refers to, in order, without repeats."""
        names = [self.tokenizer.file, *([self.golden] if self.golden else [])]
        names += [graph.file for graphs in self.variants.values() for graph in graphs.values()]
        return tuple(dict.fromkeys(names))

    def check_files(self) -> None:
        """Check that every file referred to is listed. Raises `BundleError`."""
        for name in self.needed_files():
            _sound(name in self.files, f"refers to {name}, which is not among its files")

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "video": self.video.to_json(),
            "tokenizer": asdict(self.tokenizer),
            "stages": {stage: self.stages[stage].to_json() for stage in STAGES},
            "variants": {v: {s: g.to_json() for s, g in graphs.items()} for v, graphs in self.variants.items()},
            "default": {stage: self.default[stage] for stage in STAGES},
            "files": {name: asdict(entry) for name, entry in sorted(self.files.items())},
            "golden": self.golden,
            "device": self.device,
            "condition_groups": list(self.condition_groups),
            "quality": dict(self.quality),
            "provenance": dict(self.provenance),
        }

    def to_bytes(self) -> bytes:
        """The manifest's file. The same manifest gives the same bytes."""
        return strict_json.dumps(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        require(
            len(data) <= MAX_MANIFEST_BYTES,
            f"{FILE_NAME} has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are taken",
        )
        return cls.from_json(strict_json.loads(data, FILE_NAME))

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Read a manifest from parsed JSON. Unknown keys are ignored. Raises `BundleError`."""
        require(
            isinstance(data, dict) and data.get("format") == FORMAT,
            f"{FILE_NAME} is not a {FORMAT} manifest; give the folder that t2v-edge export wrote",
        )
        version = data.get("schema_version")
        require(
            version == SCHEMA_VERSION and not isinstance(version, bool),
            f"schema_version is {version!r}, this reads {SCHEMA_VERSION}; upgrade t2v-edge or export again",
        )
        try:
            return cls(
                name=data["name"],
                video=VideoSpec.from_json(data["video"]),
                tokenizer=TokenizerSpec.from_json(data["tokenizer"]),
                stages={str(k): StageSpec.from_json(v) for k, v in data["stages"].items()},
                variants={
                    str(v): {str(s): GraphEntry.from_json(g) for s, g in graphs.items()}
                    for v, graphs in data["variants"].items()
                },
                default={str(k): str(v) for k, v in data["default"].items()},
                files={check_file_name(k): FileEntry.from_json(v) for k, v in data["files"].items()},
                golden=None if data.get("golden") is None else check_file_name(data["golden"]),
                device=_text(data, "device"),
                condition_groups=_groups(data.get("condition_groups", [])),
                quality=dict(data["quality"]),
                provenance=dict(data["provenance"]),
            )
        except KeyError as error:
            raise BundleError(f"{FILE_NAME} lacks {error}") from error
        except (TypeError, ValueError, AttributeError, SpecError) as error:
            raise BundleError(f"{FILE_NAME} is malformed ({error})") from error
