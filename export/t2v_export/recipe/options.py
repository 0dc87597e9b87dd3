"""Options of a recipe's passes, as data: each field holds its default, its description and what it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from t2v_calibration.ranges import METHODS
from t2v_edge.spec import STAGES

CRITERIA = ("magnitude", "taylor", "activation")
BUDGETS = ("macs", "parameters")
PRECISIONS = ("bfloat16", "float32")
CAPTIONS = ("en", "zh")


@dataclass(frozen=True)
class Option:
    """What a field of a pass may be: the ``option`` in the metadata of the field. The type of its default is its type.

    `ends`: its lowest and highest value, or empty. `choices`: the words that it takes, or empty for any.
    """

    default: Any
    description: str
    ends: tuple[float, ...]
    choices: tuple[str, ...]


def option(default: Any, description: str, *ends: float, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that holds an `Option`."""
    metadata = {"option": Option(default, description, ends, choices)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def _kept_share(stage: str) -> Any:
    return option(1.0, f"Share of the {stage} stage's multiply-accumulates to keep. 1 leaves it as it is.", 0.001, 1.0)


def _weight(default: float, description: str) -> Any:
    return option(default, f"Weight of a loss of frames: {description}.", 0.0, 1000.0)


@dataclass(frozen=True)
class Quantize:
    """INT8 graphs of a trained checkpoint, without training.

    It is the last pass of a recipe. Captions are played to see what each tensor holds.
    """

    stages: tuple[str, ...] = option(("text", "render"), "Stages to quantize.", choices=STAGES)
    method: str = option("percentile", "How the range of an activation is read from its histogram.", choices=METHODS)
    percentile: float = option(99.99, "Percent of the values that a range holds, for `percentile`.", 50.0, 100.0)
    weight_bits: int = option(7, "Bits of weights in `int8-u8`. With 8, x86 without VNNI clips sums or is slow.", 7, 8)
    smooth: float = option(0.0, "How much of outliers behind a LayerNorm moves into weights (SmoothQuant).", 0.0, 1.0)
    compensate: bool = option(True, "Round each weight to make up for the rounding of those before it (GPTQ).")
    bias_correction: bool = option(True, "Take the mean error of a layer's outputs back in its bias.")
    keep_first: bool = option(True, "Keep dense layers that read a float input directly in float32.")
    keep_last: bool = option(True, "Keep layers that no other layer follows in float32.")
    keep: tuple[str, ...] = option((), "Names of further layers to keep in float32.")
    spare: float = option(
        0.01, "Keep the most sensitive layers in float32, up to this share of the work. Needs `sensitivity`.", 0.0, 1.0
    )
    min_psnr: float = option(
        0.0, "Least mean PSNR of frames, in dB. Sensitive layers stay in float32 until it holds. 0: none.", 0.0, 100.0
    )
    max_error: float = option(0.0, "Most relative RMS error of text and motion, held likewise. 0: none.", 0.0, 10.0)
    sensitivity: bool = option(True, "Measure what each layer alone loses, and report it.")
    float_weights: tuple[str, ...] = option(
        (),
        "Stages whose `int8` graphs hold float32 weights behind Q and DQ: four times the bytes, for TensorRT 8.6.",
        choices=STAGES,
    )
    captions: tuple[str, ...] = option(CAPTIONS, "Captions to calibrate with. Names of caption sets, or files.")
    text_samples: int = option(256, "Inputs of the text stage to calibrate with.", 1, 20_000)
    motion_samples: int = option(512, "Inputs of the motion stage to calibrate with.", 1, 20_000)
    render_samples: int = option(256, "Inputs of the render stage to calibrate with.", 1, 20_000)
    steps: int = option(64, "Base steps of each stream that is played.", 2, 10_000)


@dataclass(frozen=True)
class Prune:
    """A smaller checkpoint without its least important channels, heads, units, layers and tokens.

    Importance is judged on streams that are played from captions. A `distill` pass should follow.
    """

    stages: tuple[str, ...] = option(STAGES, "Stages to prune.", choices=STAGES)
    criterion: str = option(
        "activation",
        "Importance of a unit: squares of its weights (`magnitude`), change of the outputs without it (`taylor`), "
        "or energy it brings into its readers (`activation`).",
        choices=CRITERIA,
    )
    text_keep: float = _kept_share("text")
    motion_keep: float = _kept_share("motion")
    render_keep: float = _kept_share("render")
    total_keep: float = option(1.0, "Share of the `budget` of all stages to keep. 1 sets no budget.", 0.001, 1.0)
    budget: str = option(
        "macs", "What `total_keep` counts: multiply-accumulates of a second of video, or parameters.", choices=BUDGETS
    )
    text_layers: int = option(0, "Layers of the text encoder to keep. 0 keeps all.", 0, 1000)
    vocabulary: bool = option(False, "Keep only the tokens that the captions and single characters need.")
    vocabulary_near: int = option(0, "Near words to keep for each word of the captions, by the encoder.", 0, 1000)
    vocabulary_size: int = option(0, "Tokens to keep at least. Common ones fill up the number.", 0, 1_000_000)
    round_to: int = option(8, "Widths are multiples of this number.", 1, 256)
    floor: float = option(0.0, "No width falls below this share of what it was.", 0.0, 1.0)
    captions: tuple[str, ...] = option(CAPTIONS, "Captions that units are judged on. Names of caption sets, or files.")
    samples: int = option(64, "Inputs of each stage that units are judged on.", 1, 20_000)
    widths: Mapping[str, Any] = option(
        {}, "Options to prune to, by stage, such as `render.channels = [64, 32]`. They are cut before the shares apply."
    )


@dataclass(frozen=True)
class Rebuild:
    """A stage that is built again with some options changed, for what pruning cannot make.

    Weights keep their values where name and shape still fit. Others start at random, so a `distill` pass must follow.
    """

    stage: str = option("render", "The stage to build.", choices=STAGES)
    options: Mapping[str, Any] = option({}, "Options of the stage's class that change.")


@dataclass(frozen=True)
class Distill:
    """Training of the smaller stages to do what the original checkpoint does.

    It needs captions and noise, and no videos.
    """

    stages: tuple[str, ...] = option(STAGES, "Stages to train.", choices=STAGES)
    captions: tuple[str, ...] = option(CAPTIONS, "Captions to learn from. Names of caption sets, or files.")
    corpus: str = option("", "One more file or set of captions to learn from.")
    near: int = option(0, "Near words that may replace a word of the captions, by the encoder.", 0, 1000)
    text_steps: int = option(2000, "Updates of the text stage.", 1, 10_000_000)
    text_batch: int = option(128, "Batch of the text stage.", 2, 65_536)
    text_rate: float = option(1e-3, "Peak learning rate of the text stage (AdamW).", 1e-7, 1.0)
    motion_steps: int = option(2000, "Updates of the motion stage.", 1, 10_000_000)
    motion_batch: int = option(128, "Batch of the motion stage.", 2, 65_536)
    motion_rate: float = option(1e-3, "Peak learning rate of the motion stage (AdamW).", 1e-7, 1.0)
    length: int = option(96, "Base steps of a motion rollout that one update learns from.", 2, 10_000)
    render_steps: int = option(10_000, "Updates of the render stage.", 1, 10_000_000)
    render_batch: int = option(32, "Batch of the render stage.", 2, 65_536)
    render_rate: float = option(1e-3, "Peak learning rate of the render stage (AdamW).", 1e-7, 1.0)
    pixel: float = _weight(1.0, "L1 of pixels")
    perceptual: float = _weight(0.5, "features of the teacher's own layers")
    temporal: float = _weight(1.0, "change between two moments of a stream")
    contrast: float = _weight(1.0, "what another caption changes in a frame, however small")
    adversarial: float = _weight(0.0, "a critic of pairs of frames")
    quantization_aware: float = option(0.0, "Last share of the render stage's training that rounds as INT8.", 0.0, 1.0)
    precision: str = option(
        "bfloat16", "Arithmetic of text and render on a GPU. float32 shows finer changes in time.", choices=PRECISIONS
    )


@dataclass(frozen=True)
class Round:
    """Weight matrices on a grid of 8 bits, which every variant then shares.

    It is for recurrent stages. They compute in float, and their state would follow the least change of a weight.
    INT8 variants store these weights in a quarter of the bytes.
    """

    stages: tuple[str, ...] = option(("motion",), "Stages whose weights are rounded.", choices=STAGES)


Pass = Union[Quantize, Prune, Rebuild, Distill, Round]
PASSES: Mapping[str, type[Pass]] = {made.__name__.lower(): made for made in (Quantize, Prune, Rebuild, Distill, Round)}
