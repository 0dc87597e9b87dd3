"""An evaluator: a video classifier in ONNX that reads from frames what a caption could have named.

Its folder holds `evaluator.json` (labels, number, rate and size of frames) and `evaluator.onnx`: uint8 ``video`` (1,
frames, 3, size, size) -> float32 ``logits`` (1, all values). TFGAN (Balaji et al., IJCAI 2019) judges text faithfulness
by attribute classifiers as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from t2v_edge.bundle.onnx_check import read_graph
from t2v_edge.errors import BundleError, CheckpointError
from t2v_export.evaluate.fidelity import Frame
from t2v_export.graph import view

FORMAT, FORMAT_VERSION = "t2v-evaluator", 1
PRODUCTS = ("Gemm", "MatMul", "Conv")
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class EvaluatorSpec:
    """What an evaluator reads: `frames` at `fps`, `size` pixels square, and the values of each slot."""

    frames: int
    fps: int
    size: int
    slots: dict[str, tuple[str, ...]]

    @property
    def logits(self) -> int:
        return sum(len(values) for values in self.slots.values())

    def positions(self, base_fps: float, start_s: float) -> list[float]:
        """Where its frames lie in base steps, from `start_s` seconds on."""
        return [(start_s + k / self.fps) * base_fps for k in range(self.frames)]


def read_spec(folder: Path) -> tuple[EvaluatorSpec, dict[str, Any]]:
    """The evaluator's spec and its whole parsed JSON; raises `CheckpointError` where it cannot be used."""
    path = folder / "evaluator.json"
    try:
        data = json.loads(path.read_text("utf-8"))
        slots = {str(slot): tuple(map(str, values)) for slot, values in data["slots"].items()}
        spec = EvaluatorSpec(int(data["frames"]), int(data["fps"]), int(data["size"]), slots)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error!r}; give a folder such as a checkpoint's evaluator/, with "
            "evaluator.json and evaluator.onnx"
        ) from error
    if data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} is not {FORMAT} version {FORMAT_VERSION}; train it again with this version")
    if min(spec.frames, spec.fps, spec.size, spec.logits) < 1:
        raise CheckpointError(f"{path}: frames, fps, size and slots must be positive; train it again")
    return spec, data


class Evaluator:
    """A loaded evaluator on one CPU thread. Raises `CheckpointError` where the folder does not hold a sound one."""

    def __init__(self, folder: Path) -> None:
        self.spec, self.description = read_spec(folder)
        path = folder / "evaluator.onnx"
        try:
            data = path.read_bytes()
            if len(data) > MAX_BYTES:
                raise CheckpointError(f"{path} has {len(data)} bytes, at most {MAX_BYTES} are taken")
            self._check(path, data)
            model = onnx.load_from_string(data)
        except (OSError, BundleError) as error:
            raise CheckpointError(f"cannot use {path}: {error}; make it again") from error
        self._features = feature_names(model)
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in self._features)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _check(self, path: Path, data: bytes) -> None:
        summary, spec = read_graph(data, path.name), self.spec
        inputs = [(t.name, t.shape, t.dtype) for t in summary.inputs]
        outputs = [(t.name, t.shape, t.dtype) for t in summary.outputs]
        wanted = [("video", (1, spec.frames, 3, spec.size, spec.size), "uint8")]
        if inputs != wanted or outputs != [("logits", (1, spec.logits), "float32")]:
            raise CheckpointError(
                f"{path} takes {inputs} and gives {outputs}, evaluator.json says {wanted} and "
                f"{spec.logits} logits; make it again"
            )

    def read(self, frames: Sequence[Frame]) -> tuple[list[int], NDArray[np.float32]]:
        """The index of each slot's value, and the features (d,), read from the spec's number of frames (H, W, 3).

        Features are the inputs of the last layers, or the logits themselves if the graph has no product.
        """
        size = (self.spec.size, self.spec.size)
        small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
        video = np.ascontiguousarray(np.stack(small)[None].transpose(0, 1, 4, 2, 3))
        logits, *features = self._session.run(["logits", *self._features], {"video": video})
        ends = np.cumsum([len(values) for values in self.spec.slots.values()])
        read = [int(part.argmax()) for part in np.split(logits[0], ends[:-1])]
        return read, np.concatenate([np.ravel(part) for part in features or [logits]])


def feature_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """The penultimate tensors: what the last products on the way to ``logits`` take, in graph order."""
    graph = view.read(model).graph
    found, seen = set(), set()
    waiting = [output for output in graph.outputs if output.name == "logits"]
    while waiting:
        node = view.maker(waiting.pop())
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in PRODUCTS:
            found.add(node.inputs[0])
        else:
            waiting.extend(value for value in node.inputs if value is not None)
    return tuple(view.name_of(value) for node in graph for value in node.outputs if value in found)
