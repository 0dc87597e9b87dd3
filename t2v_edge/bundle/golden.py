"""A bundle's golden vectors, and their comparison with what an engine computes on this device."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Optional

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.archive import DAMAGED
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.manifest import Manifest
from t2v_edge.errors import BundleError, EngineError
from t2v_edge.spec import Arrays, StageSpec, TensorSpec

Array = npt.NDArray[Any]
Run = Callable[[Arrays], Mapping[str, Array]]

MAX_CAPTIONS = 256
MAX_CAPTION_CHARS = 4096
MAX_STEPS = 4096
MAX_FRAMES = 64
MAX_BYTES = 1 << 30

FLOAT_TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2}
"""The largest difference from torch, relative to the output's largest value. Engines order sums differently, and
TensorRT more so than ONNX Runtime. For that one the exporter demands 1e-4 and 1e-2."""

INT8_SLACK = 2.0
"""An engine's INT8 may differ this many times as much as the exporter measured on ONNX Runtime. Values at the border of
two steps round to either side. At worst that doubles the error of rounding."""

INT8_SLACK_DB = 3.0
"""The same for frames: twice the squared error."""

NO_DIFFERENCE_DB = 100.0

_DAMAGED = (*DAMAGED, TypeError, SyntaxError, KeyError, OverflowError)


@dataclass(frozen=True)
class GoldenDifference:
    """The worst difference over a stage's outputs, the states of motion included.

    NaN or infinity in an output makes the first three infinite.

    max_rel: `max_abs` relative to the largest absolute golden value.
    max_abs: the largest absolute difference. For frames in levels of 255.
    rms_rel: the root mean square of the difference, relative to that of the golden values.
    psnr_db: of the worst frame, peak 255. 100 if no frame differs. Render only.
    """

    stage: str
    max_rel: float
    max_abs: float
    rms_rel: float
    psnr_db: Optional[float] = None

    def to_json(self) -> dict[str, Any]:
        """Plain values. None means infinite."""
        return {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in vars(self).items()
        }

    def __str__(self) -> str:
        if not math.isfinite(self.max_rel):
            return "NaN or infinite"
        if self.psnr_db is not None:
            return f"{self.max_abs:.0f} levels at most, {self.psnr_db:.1f} dB"
        return f"{self.max_rel:.1e} relative"


@dataclass(frozen=True)
class Tolerance:
    """The limits of a difference. None sets no limit. levels: of the `max_abs` of frames."""

    max_rel: Optional[float] = None
    levels: Optional[int] = None
    psnr_db: Optional[float] = None

    def allows(self, difference: GoldenDifference) -> bool:
        return (
            math.isfinite(difference.max_rel)
            and (self.max_rel is None or difference.max_rel <= self.max_rel)
            and (self.levels is None or difference.max_abs <= self.levels)
            and (self.psnr_db is None or (difference.psnr_db is not None and difference.psnr_db >= self.psnr_db))
        )

    def __str__(self) -> str:
        if self.psnr_db is not None:
            return f"at least {self.psnr_db:.1f} dB"
        return f"at most {self.levels} levels" if self.levels is not None else f"at most {self.max_rel:.1e} relative"


class Golden:
    """The results of torch for some captions, and for the stream of the first one.

    Immutable. Several threads may call `check`.

    captions: their texts.
    ids, mask: int64 (captions, tokens).
    condition: float32 (captions, C).
    steps: the base steps that motion was run.
    """

    def __init__(self, manifest: Manifest, arrays: Mapping[str, Array]) -> None:
        self.captions: tuple[str, ...] = tuple(str(text) for text in arrays["captions"])
        self.ids, self.mask, self.condition = (arrays[n] for n in ("input_ids", "attention_mask", "condition"))
        self.steps: int = len(arrays["motion"])
        self._stages = manifest.stages
        self._quality = manifest.quality
        self._arrays = dict(arrays)

    @classmethod
    def read(cls, bundle: Bundle) -> Optional[Golden]:
        """The golden vectors of a bundle, None if it has none.

        Raises `BundleError` if an array is missing, unknown, not finite or not as the stage contracts say. Declared
        sizes are checked before data of that size is read.
        """
        manifest = bundle.manifest
        if manifest.golden is None:
            return None
        try:
            arrays = _read_arrays(io.BytesIO(bundle.read(manifest.golden)), _expected(manifest))
            _check_arrays(arrays)
            return cls(manifest, arrays)
        except _DAMAGED as error:
            raise BundleError(f"{manifest.golden} cannot be read ({error}); export the bundle again") from error

    @property
    def arrays(self) -> Mapping[str, Array]:
        """All arrays by name."""
        return self._arrays

    def check(self, stage: str, run: Run) -> GoldenDifference:
        """Run a stage with the inputs that torch had, and compare the results.

        Text gets every caption. Motion runs all steps from the golden start with the states that it returns. Render
        draws the kept frames from the golden motion. Conditions are compared before `settle_condition`. Raises
        `EngineError` if an output is missing or has another shape or dtype.
        """
        spec = self._stages[stage]

        def checked(feeds: Arrays) -> Mapping[str, Array]:
            outputs = run(feeds)
            for tensor in spec.outputs:
                _check_output(spec, tensor, outputs.get(tensor.name))
            return outputs

        pairs = {"text": self._text, "motion": self._motion, "render": self._render}[stage](spec, checked)
        figures = [_difference(made, wanted) for made, wanted in pairs.values()]
        psnr = _psnr_db(*pairs["frame"]) if stage == "render" else None
        max_abs, max_rel, rms_rel = (max(column) for column in zip(*figures))
        return GoldenDifference(stage, max_rel, max_abs, rms_rel, psnr)

    def tolerance(self, stage: str, precision: str, variant: Optional[str] = None) -> Tolerance:
        """The differences from `check` that count as right for a stage in a precision.

        ``fp32`` and ``fp16`` have fixed limits (for frames in whole levels of 255). For INT8 the limit is what the
        exporter measured on ONNX Runtime, with a slack: the worst frame's PSNR for render, the largest relative
        difference for text and motion. The latter get the limit of float16 on top, because an engine may run layers
        that are not quantized in it. Raises `BundleError` if the manifest's quality lacks the figure.

        variant: the variant that was measured, by default the one named like the precision.
        """
        known = FLOAT_TOLERANCES.get(precision)
        if known is not None:
            return Tolerance(levels=math.ceil(known * 255)) if stage == "render" else Tolerance(max_rel=known)
        if stage == "render":
            measured = self._measured(variant or precision, stage, "psnr_db", "min")
            return Tolerance(psnr_db=measured - INT8_SLACK_DB)
        measured = self._measured(variant or precision, stage, "max_rel")
        return Tolerance(max_rel=INT8_SLACK * measured + FLOAT_TOLERANCES["fp16"])

    def _measured(self, *keys: str) -> float:
        value: Any = self._quality
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise BundleError(f"manifest: quality has no figure for {' '.join(keys)}; export the bundle again")
        return float(value)

    def _text(self, spec: StageSpec, run: Run) -> dict[str, tuple[Array, Array]]:
        made = [
            run({"input_ids": self.ids[i : i + 1], "attention_mask": self.mask[i : i + 1]})["condition"]
            for i in range(len(self.ids))
        ]
        return {"condition": (np.concatenate(made), self.condition)}

    def _motion(self, spec: StageSpec, run: Run) -> dict[str, tuple[Array, Array]]:
        drawn = {n.input: self._arrays[f"motion.{n.input}"] for n in spec.noises}
        each_step = {n.input for n in spec.noises if n.cadence == "step"}
        states = {s.input: self._arrays[f"start.{s.name}"] for s in spec.states}
        motions = []
        for step in range(self.steps):
            noises = {name: value[step : step + 1] if name in each_step else value for name, value in drawn.items()}
            outputs = run({"condition": self.condition[:1], **noises, **states})
            states = {s.input: outputs[s.output] for s in spec.states}
            motions.append(outputs["motion"])
        pairs = {s.output: (states[s.input], self._arrays[s.output]) for s in spec.states}
        return {"motion": (np.concatenate(motions), self._arrays["motion"]), **pairs}

    def _render(self, spec: StageSpec, run: Run) -> dict[str, tuple[Array, Array]]:
        noises = {n.input: self._arrays[f"render.{n.input}"] for n in spec.noises}
        feeds = {"condition": self.condition[:1], **noises}
        motion = self._arrays["motion"]
        frames = [run({"motion": motion[step : step + 1], **feeds})["frame"] for step in self._arrays["frame_steps"]]
        return {"frame": (np.concatenate(frames), self._arrays["frames"])}


def verify_bundle(bundle: Bundle) -> None:
    """Check every graph of every variant and the golden vectors, beyond what opening checks. Raises `BundleError`."""
    for variant, graphs in bundle.manifest.variants.items():
        for stage in graphs:
            bundle.graph(variant, stage)
    Golden.read(bundle)


@dataclass(frozen=True)
class _Expected:
    """An array that the file must have. rows: the name of its first size, and that size's limit."""

    rows: tuple[str, int]
    shape: tuple[int, ...]
    dtype: str


def _expected(manifest: Manifest) -> dict[str, _Expected]:
    """Every array that a bundle of these stages must have, by name."""
    text, motion, render = (manifest.stages[stage] for stage in ("text", "motion", "render"))
    captions, steps, frames, one = ("captions", MAX_CAPTIONS), ("steps", MAX_STEPS), ("frames", MAX_FRAMES), ("one", 1)

    def like(tensor: TensorSpec, rows: tuple[str, int]) -> _Expected:
        return _Expected(rows, tensor.shape[1:], tensor.dtype)

    plain = {t.name: t for spec in (text, motion, render) for t in (*spec.feeds, *spec.results)}
    wanted = {
        "seed": _Expected(one, (), "int64"),
        "captions": _Expected(captions, (), "str"),
        **{name: like(plain[name], captions) for name in ("input_ids", "attention_mask", "condition")},
        "motion": like(plain["motion"], steps),
        "frames": like(plain["frame"], frames),
        "frame_steps": _Expected(frames, (), "int64"),
    }
    for noise in motion.noises:
        rows = steps if noise.cadence == "step" else one
        wanted[f"motion.{noise.input}"] = like(TensorSpec(noise.input, noise.shape), rows)
    wanted.update({f"render.{n.input}": like(TensorSpec(n.input, n.shape), one) for n in render.noises})
    for state in motion.states:
        for name in (f"start.{state.name}", state.output):
            wanted[name] = like(TensorSpec(name, state.shape), one)
    return wanted


def _read_arrays(file: IO[bytes], expected: Mapping[str, _Expected]) -> dict[str, Array]:
    """The arrays of an npz. The header of each is checked before its data is read."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if sum(info.file_size for info in members.values()) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of arrays")
        names = {f"{name}.npy" for name in expected}
        for member in sorted(names ^ set(members)):
            raise ValueError(f"{member} {'is missing' if member in names else 'is unknown'}")
        rows: dict[str, int] = {"one": 1}
        arrays = {}
        for name, wanted in expected.items():
            with archive.open(members[f"{name}.npy"]) as stream:
                arrays[name] = _read_array(stream, name, wanted, rows)
    return arrays


def _read_array(stream: IO[bytes], name: str, wanted: _Expected, rows: dict[str, int]) -> Array:
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is not an array of npy version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    # A number may be stored as an array without dimensions.
    count = shape[0] if shape else 1
    label, limit = wanted.rows
    if fortran or shape[1:] != wanted.shape or not 1 <= count <= limit or count != rows.setdefault(label, count):
        raise ValueError(
            f"{name} has the shape {str(shape)[:80]}, expected {(rows.get(label, f'1 to {limit}'), *wanted.shape)}"
        )
    if wanted.dtype == "str":
        good = dtype.kind == "U" and 0 < dtype.itemsize <= 4 * MAX_CAPTION_CHARS
    else:
        good = dtype == np.dtype(wanted.dtype)
    if not good:
        raise ValueError(f"{name} is {str(dtype)[:80]}, expected {wanted.dtype}")
    size = dtype.itemsize * math.prod((count, *wanted.shape))
    data = stream.read(size + 1)  # one byte more, so that the checksum is verified and trailing data is noticed
    if len(data) != size:
        raise ValueError(f"{name} does not have the {size} bytes that its header declares")
    return np.frombuffer(data, dtype).reshape((count, *wanted.shape))


def _check_arrays(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    for caption in arrays["captions"].tolist():
        caption.encode("utf-8")
    steps = arrays["frame_steps"]
    if steps.min() < 0 or steps.max() >= len(arrays["motion"]):
        raise ValueError(
            f"frame_steps {steps.tolist()} are not steps of motion, of which there are {len(arrays['motion'])}"
        )
    if int(arrays["input_ids"].min()) < 0:
        raise ValueError("input_ids holds a negative token")


def _check_output(spec: StageSpec, tensor: TensorSpec, made: Optional[Array]) -> None:
    if made is None or made.shape != tensor.shape or made.dtype != np.dtype(tensor.dtype):
        found = "nothing" if made is None else f"{made.dtype}{list(made.shape)}"
        raise EngineError(
            f"stage {spec.stage}: the engine gives {found} as {tensor.name}, its contract says "
            f"{tensor.dtype}{list(tensor.shape)}; take another engine or variant"
        )


def _difference(made: Array, wanted: Array) -> tuple[float, float, float]:
    """The largest absolute, largest relative and relative RMS difference. All infinite for NaN or infinity."""
    exact = wanted.astype(np.float64)
    apart = np.abs(made.astype(np.float64) - exact)
    if not np.isfinite(apart).all():
        return math.inf, math.inf, math.inf
    largest, rms = float(apart.max()), math.sqrt(float(np.mean(apart**2)))
    return largest, _share(largest, float(np.abs(exact).max())), _share(rms, math.sqrt(float(np.mean(exact**2))))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def _psnr_db(made: Array, wanted: Array) -> float:
    """The PSNR of the worst frame. made, wanted: uint8 (n, H, W, 3), peak 255."""
    errors = np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2, axis=(1, 2, 3))
    worst = float(errors.max())
    return min(NO_DIFFERENCE_DB, 10 * math.log10(255**2 / worst)) if worst else NO_DIFFERENCE_DB
