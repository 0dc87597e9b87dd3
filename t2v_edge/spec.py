"""The contract of a stage: its inputs, its outputs, and the state between steps.

Exporter and runtime share these types; they are stored as JSON in a bundle's manifest.

Names (batch size is 1 everywhere, shapes are static):

=======  ==============================================================  ============================
stage    inputs                                                          outputs
=======  ==============================================================  ============================
text     ``input_ids``, ``attention_mask`` int64 (1, tokens)             ``condition`` float32 (1, C)
motion   ``condition`` (1, C), ``noise.NAME``..., ``state.NAME``...      ``motion`` (1, M), ``next.NAME``...
render   ``motion`` (1, M), ``condition`` (1, C), ``noise.NAME``...      ``frame`` uint8 (1, H, W, 3) RGB
=======  ==============================================================  ============================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt

from t2v_edge.errors import SpecError

STAGES = ("text", "motion", "render")
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
DISTRIBUTIONS = ("normal", "uniform")
CADENCES = ("stream", "step")
STARTS = ("zeros", "normal", "stored")
MAX_ELEMENTS = 1 << 28

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by the names of a stage's tensors."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor: its static shape, batch dimension first, and its numpy dtype name. Raises `SpecError`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _require(
            isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None, f"bad tensor name {self.name!r}"
        )
        _require(self.dtype in DTYPES, f"tensor {self.name}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        elements = 1
        for size in self.shape:
            _require(
                isinstance(size, int) and not isinstance(size, bool) and size >= 1,
                f"tensor {self.name}: bad shape {self.shape}",
            )
            elements *= size
        _require(
            elements <= MAX_ELEMENTS, f"tensor {self.name}: {elements} elements, at most {MAX_ELEMENTS} are allowed"
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        return cls(data["name"], tuple(data["shape"]), data["dtype"])


@dataclass(frozen=True)
class NoiseSpec:
    """A noise input ``noise.NAME``: its distribution and how often it is drawn.

    ``normal`` is N(0, 1) times `scale`, ``uniform`` is U[0, 1) times `scale`. Cadence ``stream`` draws once a stream,
    such as a GAN's content code. ``step`` draws at every base step, such as MoCoGAN's motion noise.
    """

    name: str
    shape: tuple[int, ...]
    distribution: str = "normal"
    cadence: str = "stream"
    scale: float = 1.0

    def __post_init__(self) -> None:
        TensorSpec(self.input, self.shape)
        _require(
            self.distribution in DISTRIBUTIONS,
            f"noise {self.name}: distribution {self.distribution!r} is not one of {', '.join(DISTRIBUTIONS)}",
        )
        _require(
            self.cadence in CADENCES, f"noise {self.name}: cadence {self.cadence!r} is not one of {', '.join(CADENCES)}"
        )

    @property
    def input(self) -> str:
        return f"noise.{self.name}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NoiseSpec:
        return cls(data["name"], tuple(data["shape"]), data["distribution"], data["cadence"], float(data["scale"]))


@dataclass(frozen=True)
class StateSpec:
    """A recurrent state ``state.NAME`` -> ``next.NAME`` and how it starts.

    `start` is ``zeros``, ``normal`` (N(0, 1) from the stream's generator) or ``stored``. For ``stored``, `value` holds
    one start value for each element, row-major.
    """

    name: str
    shape: tuple[int, ...]
    start: str = "zeros"
    value: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        tensor = TensorSpec(self.input, self.shape)
        _require(self.start in STARTS, f"state {self.name}: start {self.start!r} is not one of {', '.join(STARTS)}")
        elements = 1
        for size in tensor.shape:
            elements *= size
        expected = elements if self.start == "stored" else 0
        _require(len(self.value) == expected, f"state {self.name}: {len(self.value)} start values, expected {expected}")

    @property
    def input(self) -> str:
        return f"state.{self.name}"

    @property
    def output(self) -> str:
        return f"next.{self.name}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StateSpec:
        return cls(data["name"], tuple(data["shape"]), data["start"], tuple(float(v) for v in data["value"]))


@dataclass(frozen=True)
class StageSpec:
    """A stage's whole contract. `feeds`: its plain inputs. Noises and states add theirs after them."""

    stage: str
    feeds: tuple[TensorSpec, ...]
    results: tuple[TensorSpec, ...]
    noises: tuple[NoiseSpec, ...] = ()
    states: tuple[StateSpec, ...] = ()

    def __post_init__(self) -> None:
        _require(self.stage in STAGES, f"stage {self.stage!r} is not one of {', '.join(STAGES)}")
        _require(not self.states or self.stage == "motion", f"stage {self.stage}: only the motion stage carries state")
        for noise in self.noises:
            _require(self.stage != "text", "stage text: takes no noise")
            _require(
                self.stage == "motion" or noise.cadence == "stream",
                f"stage {self.stage}: noise {noise.name} must be drawn once a stream; only motion draws at steps",
            )
        for names in ([t.name for t in self.inputs], [t.name for t in self.outputs]):
            _require(len(set(names)) == len(names), f"stage {self.stage}: a name is used twice in {names}")

    # Cached, because engines read both at every run.
    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """All graph inputs in order: feeds, noises, states."""
        return (
            self.feeds
            + tuple(TensorSpec(n.input, n.shape) for n in self.noises)
            + tuple(TensorSpec(s.input, s.shape) for s in self.states)
        )

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """All graph outputs in order: results, next states."""
        return self.results + tuple(TensorSpec(s.output, s.shape) for s in self.states)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageSpec:
        """A contract from parsed JSON. Raises `SpecError` for a malformed one."""
        try:
            return cls(
                data["stage"],
                tuple(TensorSpec.from_json(t) for t in data["feeds"]),
                tuple(TensorSpec.from_json(t) for t in data["results"]),
                tuple(NoiseSpec.from_json(n) for n in data["noises"]),
                tuple(StateSpec.from_json(s) for s in data["states"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"malformed stage contract: {error!r}") from error


def check_stages(text: StageSpec, motion: StageSpec, render: StageSpec) -> None:
    """Check that three stages fit together. Raises `SpecError`, which names the first misfit."""

    def one(specs: tuple[TensorSpec, ...], name: str, stage: str) -> TensorSpec:
        for spec in specs:
            if spec.name == name:
                return spec
        raise SpecError(f"stage {stage}: {name!r} is missing")

    tokens = one(text.feeds, "input_ids", "text")
    mask = one(text.feeds, "attention_mask", "text")
    _require(
        tokens.shape == mask.shape and len(tokens.shape) == 2,
        "stage text: input_ids and attention_mask must share a shape (1, tokens)",
    )
    condition = one(text.results, "condition", "text")
    moved = one(motion.results, "motion", "motion")
    frame = one(render.results, "frame", "render")
    pairs = (("motion", motion, condition), ("render", render, condition), ("render", render, moved))
    for stage, spec, wanted in pairs:
        got = one(spec.feeds, wanted.name, stage)
        _require(
            got.shape == wanted.shape,
            f"stage {stage}: takes {got.name} of shape {got.shape}, but {wanted.shape} is made",
        )
    _require(
        len(frame.shape) == 4 and frame.shape[0] == 1 and frame.shape[3] == 3 and frame.dtype == "uint8",
        f"stage render: frame must be uint8 (1, H, W, 3), not {frame.dtype} {frame.shape}",
    )
