"""A tiny bundle of random weights, made in milliseconds: 16x16 pixels, 16 fps, one state, every kind of noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from t2v_edge.bundle.bundle import GraphEntry, Manifest, TokenizerSpec, VideoSpec, write_bundle
from t2v_edge.live.options import LiveOptions
from t2v_edge.live.stream import LiveStream
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec, TensorSpec
from tests.t2v_edge.fake_time import FakeClock
from tests.t2v_edge.golden_samples import golden_arrays, pack
from tests.t2v_edge.live_device import WALK, Device

TOKENS, CONDITION, MOTION, HIDDEN, SIDE, OPSET = 8, 4, 3, 5, 16, 17
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "person",
    "is",
    "walking",
    "running",
    "dancing",
    "waving",
    "一",
    "个",
    "人",
)
_GOLDEN: list[bytes] = []  # made once
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}

SPECS = {
    "text": StageSpec(
        "text",
        (TensorSpec("input_ids", (1, TOKENS), "int64"), TensorSpec("attention_mask", (1, TOKENS), "int64")),
        (TensorSpec("condition", (1, CONDITION)),),
    ),
    "motion": StageSpec(
        "motion",
        (TensorSpec("condition", (1, CONDITION)),),
        (TensorSpec("motion", (1, MOTION)),),
        (NoiseSpec("code", (1, 2)), NoiseSpec("jitter", (1, 2), "uniform", "step", 0.5)),
        (StateSpec("hidden", (1, HIDDEN), "normal"),),
    ),
    "render": StageSpec(
        "render",
        (TensorSpec("motion", (1, MOTION)), TensorSpec("condition", (1, CONDITION))),
        (TensorSpec("frame", (1, SIDE, SIDE, 3), "uint8"),),
        (NoiseSpec("look", (1, 2)),),
    ),
}


def make_tokenizer() -> bytes:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer.to_str().encode()


def make_graph(spec: StageSpec, nodes, weights, opset: int = OPSET) -> bytes:
    """An ONNX model of `spec`'s inputs and outputs; `weights` maps names to arrays or TensorProtos."""

    def values(tensors):
        return [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in tensors]

    tensors = [w if isinstance(w, TensorProto) else numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, spec.stage, values(spec.inputs), values(spec.outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def make_parts(stage: str, seed: int = 1):
    """Nodes and weights of a tiny stage."""
    node = helper.make_node
    random = np.random.default_rng(seed)

    def weight(*shape):
        return random.standard_normal(shape).astype(np.float32)

    if stage == "text":
        nodes = [
            node("Gather", ["table", "input_ids"], ["rows"]),
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["mask3"]),
            node("Mul", ["rows", "mask3"], ["kept"]),
            node("ReduceMean", ["kept"], ["condition"], axes=[1], keepdims=0),
        ]
        return nodes, {"table": weight(len(WORDS), CONDITION) * 4, "last": np.array([2], np.int64)}
    if stage == "motion":
        nodes = [
            node("Concat", ["condition", "noise.code", "noise.jitter", "state.hidden"], ["all"], axis=1),
            node("MatMul", ["all", "w_in"], ["raw"]),
            node("Tanh", ["raw"], ["next.hidden"]),
            node("MatMul", ["next.hidden", "w_out"], ["motion"]),
        ]
        return nodes, {"w_in": weight(CONDITION + 4 + HIDDEN, HIDDEN), "w_out": weight(HIDDEN, MOTION)}
    nodes = [
        node("Concat", ["motion", "condition", "noise.look"], ["all"], axis=1),
        node("MatMul", ["all", "w"], ["raw"]),
        node("Sigmoid", ["raw"], ["unit"]),
        node("Mul", ["unit", "scale"], ["scaled"]),
        node("Cast", ["scaled"], ["bytes"], to=TensorProto.UINT8),
        node("Reshape", ["bytes", "shape"], ["frame"]),
    ]
    weights = {
        "w": weight(MOTION + CONDITION + 2, SIDE * SIDE * 3) / 2,
        "scale": np.array([255.0], np.float32),
        "shape": np.array([1, SIDE, SIDE, 3], np.int64),
    }
    return nodes, weights


@dataclass
class Tiny:
    """The parts of a tiny bundle, to be changed by a test before it is written."""

    files: dict = field(default_factory=dict)
    variants: dict = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            name="tiny",
            video=VideoSpec(SIDE, SIDE, 16, 4),
            tokenizer=TokenizerSpec("tokenizer.json", TOKENS, 0),
            stages=SPECS,
            variants=self.variants,
            default=dict.fromkeys(SPECS, "fp32"),
            golden="golden.npz",
            quality={"fp32": {"text": {"max_abs": 0.0, "max_rel": 0.0}}},
            provenance={"seed": 0, "tools": {"onnx": onnx.__version__}},
        )

    def write(self, path):
        write_bundle(path, self.manifest, self.files)
        return path


def make_tiny() -> Tiny:
    tiny = Tiny({"tokenizer.json": make_tokenizer(), "README.md": b"# tiny\n"})
    for variant, seed in (("fp32", 1), ("fp16", 2)):
        tiny.variants[variant] = {}
        for stage, spec in SPECS.items():
            name = f"{variant}/{stage}.onnx"
            tiny.files[name] = make_graph(spec, *make_parts(stage, seed))
            tiny.variants[variant][stage] = GraphEntry(name, variant, OPSET)
    if not _GOLDEN:
        _GOLDEN.append(pack(golden_arrays(tiny)))
    tiny.files["golden.npz"] = _GOLDEN[0]
    return tiny


@pytest.fixture
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture
def build_graph():
    """``build_graph(stage, change)``: a tiny graph after ``change(nodes, weights)``; `opset` may be given."""

    def build(stage: str, change=None, opset: int = OPSET) -> bytes:
        nodes, weights = make_parts(stage)
        if change is not None:
            change(nodes, weights)
        return make_graph(SPECS[stage], nodes, weights, opset)

    return build


@pytest.fixture
def specs():
    return SPECS


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory):
    return make_tiny().write(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def pipeline(bundle_path):
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def device(pipeline, clock):
    return Device(pipeline.model, clock)


@pytest.fixture
def live(device, clock):
    """``live(caption, **options)``: a stream at 30 fps; all are closed at the end."""
    made = []

    def make(caption=WALK, **options):
        made.append(LiveStream(device, LiveOptions(**{"fps": 30, **options}), clock))
        clock.condition = made[-1]._changed
        if caption is not None:
            made[-1].set_caption(caption)
        return made[-1]

    yield make
    clock.let_go()
    for stream in made:
        stream.close()
