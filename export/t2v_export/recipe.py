"""Recipes: what to do to a checkpoint or its graphs, as data. A TOML file of ordered passes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Union

from t2v_calibration.ranges import METHODS
from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 64 << 10
MAX_PASSES = 32


@dataclass(frozen=True)
class Quantize:
    """Post-training INT8. `stages` to quantize; `method` of activation ranges, `percentile` for that method.

    `smooth`: how much of the activations' outliers moves into the weights behind a LayerNorm, 0 for none. `weight_bits`
    of `int8-u8`, 7 or 8: with 8, x86 processors without VNNI clip sums (see `WEIGHT_LEVELS`). `compensate`: round each
    weight so that it makes good what rounding those before it did to the outputs. `keep_first`: dense layers that a
    float input reaches through no other layer stay in float32. `keep_last`: layers after which no other comes do.
    `keep`: names of further layers that do. `spare`: the most sensitive layers do as well, as long as they need no more
    than this share of the stage's multiply-accumulates: there INT8 has next to nothing to gain (with `sensitivity`).
    `min_psnr` (dB, of frames, the mean over samples), `max_error` (of text and motion, root mean square, relative):
    where above 0, so many of the most sensitive layers stay in float32 too, as few as keep it. `sensitivity`: report
    what each layer alone loses. `float_weights`: stages whose `int8` graphs hold float32 weights behind Q and DQ, four
    times the bytes, for TensorRT 8.6 where it refuses weights in INT8.

    `captions`: sets or files to calibrate with; `text_samples`, `motion_samples`, `render_samples`: how much of each
    stage to keep of them, `steps` the base steps of a stream.
    """

    stages: tuple[str, ...] = ("text", "render")
    method: str = "percentile"
    percentile: float = 99.99
    weight_bits: int = 7
    smooth: float = 0.0
    compensate: bool = True
    bias_correction: bool = True
    keep_first: bool = True
    keep_last: bool = True
    keep: tuple[str, ...] = ()
    spare: float = 0.01
    min_psnr: float = 0.0
    max_error: float = 0.0
    sensitivity: bool = True
    float_weights: tuple[str, ...] = ()
    captions: tuple[str, ...] = ("en", "zh")
    text_samples: int = 256
    motion_samples: int = 512
    render_samples: int = 256
    steps: int = 64


@dataclass(frozen=True)
class Prune:
    """Structured pruning: whole channels, heads, units, layers and tokens leave, and the rest is a smaller checkpoint.

    `stages` to prune. `criterion` of importance: magnitude of the weights, taylor (first-order change of the outputs,
    Molchanov et al., 2019) or activation, both on rolled-out streams of `captions` (`samples` of each stage).
    `text_keep`, `motion_keep`, `render_keep`: the share of a stage's multiply-accumulates to keep, 1 leaves it be.
    `text_layers` of the encoder to keep, 0 for all; `vocabulary`: keep the tokens that the captions and single
    characters need, for each of their words as many as `vocabulary_near` says that the encoder takes for nearly the
    same, and others, common ones first, up to `vocabulary_size`. `total_keep` below 1: one budget for all stages, a
    share of `budget` (macs of a second of video or parameters), shared out by importance within and among the stages.
    Widths are multiples of `round_to`, and none falls under the share `floor` of what it was. `widths`: options to
    prune to, by stage, such as {"render": {"channels": [64, 32]}, "text": {"encoder": {"intermediate_size": 512}}}.
    """

    stages: tuple[str, ...] = STAGES
    criterion: str = "activation"
    text_keep: float = 1.0
    motion_keep: float = 1.0
    render_keep: float = 1.0
    total_keep: float = 1.0
    budget: str = "macs"
    text_layers: int = 0
    vocabulary: bool = False
    vocabulary_near: int = 0
    vocabulary_size: int = 0
    round_to: int = 8
    floor: float = 0.0
    captions: tuple[str, ...] = ("en", "zh")
    samples: int = 64
    widths: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rebuild:
    """Build `stage` anew with some `options` changed: what a student may be that pruning alone cannot make.

    Weights whose name and shape still fit are carried over, the others start fresh: a distill pass must follow.
    """

    stage: str = "render"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Distill:
    """Teach the pruned stages what the checkpoint as it came does, from `captions` and noise alone.

    `stages` to train, each for its number of steps and batch. `corpus`: a further file of captions for the text stage,
    one a line; with `near`, some of their words are replaced by one of so many near ones. Rates are AdamW's peaks.
    `length`: base steps of a motion rollout that is learned from. Weights of the frames' losses: `pixel` (L1),
    `perceptual` (the teacher's own features), `temporal` (differences of neighbouring frames), `contrast` (what another
    caption changes in a frame, however small), `adversarial`. `quantization_aware`: the share of the render stage's
    training, at its end, in which layers round as in INT8. `precision` of a GPU's arithmetic in the text and render
    stages, bfloat16 or float32: frames differ in time by less than bfloat16 holds.
    """

    stages: tuple[str, ...] = STAGES
    captions: tuple[str, ...] = ("en", "zh")
    corpus: str = ""
    near: int = 0
    text_steps: int = 2000
    text_batch: int = 128
    text_rate: float = 1e-3
    motion_steps: int = 2000
    motion_batch: int = 128
    motion_rate: float = 1e-3
    length: int = 96
    render_steps: int = 10_000
    render_batch: int = 32
    render_rate: float = 1e-3
    pixel: float = 1.0
    perceptual: float = 0.5
    temporal: float = 1.0
    contrast: float = 1.0
    adversarial: float = 0.0
    quantization_aware: float = 0.0
    precision: str = "bfloat16"


@dataclass(frozen=True)
class Round:
    """Put the weight matrices of `stages` on a grid of 8 bits, where they stay whatever variant runs them.

    For recurrent stages, which compute in float and follow the least change of a weight for ever: INT8 variants then
    store what FP32 has, in a quarter of the bytes.
    """

    stages: tuple[str, ...] = ("motion",)


Pass = Union[Quantize, Prune, Rebuild, Distill, Round]


@dataclass(frozen=True)
class Recipe:
    """A name and its passes, in order: those that make a smaller checkpoint, then at most one that quantizes."""

    name: str
    passes: tuple[Pass, ...]

    @property
    def quantize(self) -> Quantize | None:
        """The pass that makes INT8 graphs, where there is one: the last."""
        last = self.passes[-1]
        return last if isinstance(last, Quantize) else None

    def bounded(self, min_psnr: float) -> Recipe:
        """The recipe with another `min_psnr`. Raises `UsageError` where it has no quantize pass or that is no PSNR."""
        if self.quantize is None:
            raise UsageError(f"recipe {self.name} makes no INT8 graphs; --min-psnr is for one with a quantize pass")
        low, high = _BOUNDS["min_psnr"]
        if not low <= min_psnr <= high:
            raise UsageError(f"min-psnr is {min_psnr}, expected {low} to {high} dB")
        return replace(self, passes=(*self.passes[:-1], replace(self.quantize, min_psnr=min_psnr)))

    @property
    def checkpoint_passes(self) -> tuple[Prune | Rebuild | Distill | Round, ...]:
        """The passes before it: a checkpoint in, a checkpoint out."""
        return tuple(p for p in self.passes if not isinstance(p, Quantize))


PASSES = {"quantize": Quantize, "prune": Prune, "rebuild": Rebuild, "distill": Distill, "round": Round}
_CHOICES = {
    "method": METHODS,
    "stages": STAGES,
    "float_weights": STAGES,
    "stage": STAGES,
    "criterion": ("magnitude", "taylor", "activation"),
    "budget": ("macs", "parameters"),
    "precision": ("bfloat16", "float32"),
}
_BOUNDS = {
    "percentile": (50.0, 100.0),
    "weight_bits": (7, 8),
    "smooth": (0.0, 1.0),
    "spare": (0.0, 1.0),
    "min_psnr": (0.0, 100.0),
    "max_error": (0.0, 10.0),
    "text_samples": (1, 20_000),
    "motion_samples": (1, 20_000),
    "render_samples": (1, 20_000),
    "steps": (2, 10_000),
    **dict.fromkeys(("text_keep", "motion_keep", "render_keep", "total_keep"), (0.001, 1.0)),
    "text_layers": (0, 1000),
    "vocabulary_near": (0, 1000),
    "near": (0, 1000),
    "vocabulary_size": (0, 1_000_000),
    "round_to": (1, 256),
    "floor": (0.0, 1.0),
    "samples": (1, 20_000),
    **dict.fromkeys(("text_steps", "motion_steps", "render_steps"), (1, 10_000_000)),
    **dict.fromkeys(("text_batch", "motion_batch", "render_batch"), (2, 65_536)),
    **dict.fromkeys(("text_rate", "motion_rate", "render_rate"), (1e-7, 1.0)),
    "length": (2, 10_000),
    **dict.fromkeys(("pixel", "perceptual", "temporal", "contrast", "adversarial"), (0.0, 1000.0)),
    "quantization_aware": (0.0, 1.0),
}


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or a ``.toml`` file. Raises `UsageError` naming the file, the bad key and what it
    may be.
    """
    path = _find(name_or_path)
    try:
        data = path.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise UsageError(f"recipe {path} is larger than {MAX_FILE_BYTES} bytes; is it a recipe?")
        return parse_recipe(tomllib.loads(data.decode("utf-8")), str(path))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}; give a readable file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"recipe {path} is not TOML: {error}; correct it") from error


def shipped_recipes() -> tuple[str, ...]:
    """The names that `load_recipe` takes, sorted."""
    return tuple(sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")}))


def parse_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from parsed TOML; `where` names its source in errors. Raises `UsageError`."""
    _only(data, ("name", "pass"), where)
    name, listed = data.get("name"), data.get("pass")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: name must be a word, not {name!r}")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_PASSES:
        raise UsageError(f"{where}: pass must be 1 to {MAX_PASSES} [[pass]] tables")
    passes = tuple(_pass(table, f"{where}, pass {i + 1}") for i, table in enumerate(listed))
    if any(isinstance(p, Quantize) for p in passes[:-1]):
        raise UsageError(f"{where}: a quantize pass makes graphs of a checkpoint; let it be the last, and the only one")
    return Recipe(name, passes)


def _pass(table: Any, where: str) -> Pass:
    if not isinstance(table, dict) or table.get("kind") not in PASSES:
        found = table.get("kind") if isinstance(table, dict) else table
        raise UsageError(f"{where}: kind is {found!r}; choose one of {', '.join(PASSES)}")
    made = PASSES[table["kind"]]
    defaults = {f.name: {} if f.default is MISSING else f.default for f in fields(made)}
    _only(table, ("kind", *defaults), where)
    return made(**{key: _value(key, value, defaults[key], where) for key, value in table.items() if key != "kind"})


def _value(key: str, value: Any, default: Any, where: str) -> Any:
    """`value` in the type of the default; lists of words become tuples."""
    if isinstance(default, dict):
        if not isinstance(value, dict) or not value:
            raise UsageError(f"{where}: {key} is {value!r}, expected a table of the stage's options")
        return value
    if isinstance(default, tuple):
        good = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        if not good or (not value and key != "keep"):
            raise UsageError(f"{where}: {key} is {value!r}, expected a list of words")
        value, words = tuple(value), tuple(value)
    else:
        number = type(default) is float and type(value) is int
        if type(value) is not type(default) and not number:
            raise UsageError(f"{where}: {key} is {value!r}, expected a {type(default).__name__}")
        words = (value,)
    bad = [w for w in words if w not in _CHOICES.get(key, words)]
    if bad:
        raise UsageError(f"{where}: {key} has {bad[0]!r}; choose of {', '.join(_CHOICES[key])}")
    low, high = _BOUNDS.get(key, (value, value))
    if not low <= value <= high:
        raise UsageError(f"{where}: {key} is {value!r}, expected {low} to {high}")
    return value


def _only(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise UsageError(f"{where}: key {unknown[0]!r} is unknown; allowed are {', '.join(keys)}")


def _folders() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "recipes", here.parent / "recipes") if folder.is_dir()]


def _find(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    for folder in _folders():
        if (folder / f"{name}.toml").is_file() and name in shipped_recipes():
            return folder / f"{name}.toml"
    raise UsageError(
        f"recipe {name!r} is unknown: shipped are {', '.join(shipped_recipes()) or 'none'}; or give a .toml file"
    )
