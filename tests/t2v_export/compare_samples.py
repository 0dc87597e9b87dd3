"""What the tests of the comparison play with: a tiny evaluator, captions with slots, and bundles changed on purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.bundle.bundle import Bundle, write_bundle
from t2v_edge.bundle.manifest import GraphEntry
from t2v_edge.spec import STAGES

SLOTS = {"colour": ["red", "green", "blue"], "light": ["dark", "bright"]}
FRAMES, FPS, SIZE, FEATURES = 4, 8, 8, 12
WORDS = ("a", "person", "is", "walking", "running", "dancing")


def write_evaluator(folder: Path) -> Path:
    """Random weights that read mean colours, so that what is drawn decides what is read."""
    random = np.random.default_rng(3)
    logits = sum(map(len, SLOTS.values()))
    weights = {
        "first": random.standard_normal((3 * SIZE * SIZE, FEATURES)) / 40,
        "first_bias": np.zeros(FEATURES),
        "last": random.standard_normal((FEATURES, logits)),
        "last_bias": np.zeros(logits),
    }
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([127.5], np.float32), "grey"))
    nodes = [
        helper.make_node("Cast", ["video"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "grey"], ["centred"]),
        helper.make_node("ReduceMean", ["centred"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first", "first_bias"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["features"]),
        helper.make_node("Gemm", ["features", "last", "last_bias"], ["logits"]),
    ]
    video = helper.make_tensor_value_info("video", TensorProto.UINT8, [1, FRAMES, 3, SIZE, SIZE])
    read = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, logits])
    graph = helper.make_graph(nodes, "evaluator", [video], [read], tensors)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "evaluator.onnx").write_bytes(model.SerializeToString())
    described = {
        "format": "t2v-evaluator",
        "format_version": 1,
        "frames": FRAMES,
        "fps": FPS,
        "size": SIZE,
        "slots": SLOTS,
    }
    (folder / "evaluator.json").write_text(json.dumps(described))
    return folder


def write_captions(path: Path, slots: list[dict[str, str]]) -> Path:
    """One caption for each entry of `slots`, which it names."""
    rows = []
    for index, named in enumerate(slots):
        words = [WORDS[(index * step + step) % len(WORDS)] for step in range(1, 6)]
        rows.append(json.dumps({"text": " ".join(words), "slots": named}))
    path.write_text("\n".join(rows) + "\n")
    return path


def changed(bundle: Path, target: Path, variants: dict[str, dict[str, bytes]], default: dict[str, str]) -> Path:
    """A copy of a bundle's FP32 with these variants beside it and this default."""
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        files = {name: opened.read(name) for name in manifest.files if "/" not in name}
        graphs = {"fp32": {stage: opened.graph("fp32", stage) for stage in STAGES}, **variants}
    entries = {}
    for variant, stages in graphs.items():
        entries[variant] = {}
        for stage, data in stages.items():
            opset = onnx.load_from_string(data).opset_import[0].version
            entries[variant][stage] = GraphEntry(f"{variant}/{stage}.onnx", variant, opset)
            files[f"{variant}/{stage}.onnx"] = data
    write_bundle(target, replace(manifest, variants=entries, default=default, files={}, quality={}), files)
    return target


def spoil(graph: bytes, factor: float) -> bytes:
    """Every scale of a Q/DQ graph times `factor`."""
    model = onnx.load_from_string(graph)
    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    found = [tensor for tensor in model.graph.initializer if tensor.name in scales]
    assert found
    for tensor in found:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), tensor.name))
    return model.SerializeToString()
