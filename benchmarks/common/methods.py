"""The ways to run a model that are measured: ours, and each peer as its own documentation starts it."""

from __future__ import annotations

from dataclasses import dataclass

FP32, INT8 = "fp32", "int8"
OURS, OURS_ALONE = "ours", "ours-one-by-one"


@dataclass(frozen=True)
class Method:
    """One way to run a model.

    `runner`: what runs it (torch, torch-compile, onnxruntime, openvino, ours). `graphs`: the folder of a model's
    `Material` that it runs. It is "" if the method runs the checkpoint or the bundle itself. `precision`: the
    renderer's. For ours, the bundle decides it. `ahead`: whether several frames are made at the same time, each on one
    thread. The engine's documentation advises this for throughput.
    """

    name: str
    label: str
    runner: str
    graphs: str
    precision: str
    ahead: bool = False


METHODS = (
    Method("torch-eager", "PyTorch eager", "torch", "", FP32),
    Method("torch-compile", "torch.compile", "torch-compile", "", FP32),
    Method("ort-fp32", "ONNX Runtime FP32", "onnxruntime", "plain", FP32),
    Method("ort-static-int8", "ONNX Runtime quantize_static", "onnxruntime", "ort-static", INT8),
    Method("nncf-ort-int8", "NNCF on ONNX, ONNX Runtime", "onnxruntime", "nncf-onnx", INT8),
    Method("nncf-openvino-int8", "NNCF on ONNX, OpenVINO", "openvino", "nncf-onnx", INT8),
    Method("openvino-fp32", "OpenVINO FP32", "openvino", "plain", FP32),
    Method("openvino-int8", "OpenVINO INT8 (NNCF)", "openvino", "nncf-openvino", INT8),
    Method("nncf-openvino-ahead", "NNCF on ONNX, OpenVINO throughput", "openvino", "nncf-onnx", INT8, ahead=True),
    Method("openvino-int8-ahead", "OpenVINO INT8 (NNCF) throughput", "openvino", "nncf-openvino", INT8, ahead=True),
    Method(OURS_ALONE, "t2v-edge, frame by frame", OURS, "", INT8),
    Method(OURS, "t2v-edge", OURS, "", INT8, ahead=True),
)


def method(name: str) -> Method:
    """The method of that name; raises KeyError."""
    return {m.name: m for m in METHODS}[name]
