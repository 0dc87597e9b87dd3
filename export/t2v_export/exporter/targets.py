"""TensorRT lines of a device as targets of the linter, and the check of graphs against them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from t2v_edge.device.profile import DeviceProfile, Software
from t2v_edge.spec import STAGES
from t2v_export.graph.lint import LintTarget, check_lint
from t2v_export.graph.opset import HALF_SCALES

TENSORRT = ("tensorrt", "tensorrt-rtx")
HALF_INT8 = "int8-fp16"
UNSIGNED = "int8-u8"
REMEDY = "no engine of this TensorRT would be right; change the stage's class, or choose another device"


def tensorrt_lines(profile: DeviceProfile) -> tuple[Software, ...]:
    """Software lines of a device whose engine is TensorRT or TensorRT-RTX."""
    return tuple(line for line in profile.software if line.engine in TENSORRT)


def takes_half_int8(profile: DeviceProfile) -> bool:
    """Whether a TensorRT of the device reads Q and DQ with float16 scales, and the device computes both."""
    reads = any(line.opset_cap >= HALF_SCALES for line in tensorrt_lines(profile))
    return reads and {"fp16", "int8"} <= set(profile.precisions)


def target_of_line(line: Software) -> LintTarget:
    """The linter's target for a TensorRT line.

    All generations take int8 with zero-point 0; a uint8 zero-point of 0 is read as int8 without an error. They take
    float biases, uint8 as the graph's output alone, and 8-bit constants before DQ alone. 8.6 fails to build transposed
    convolutions in INT8, with an internal error.
    """
    major = line.version.split(".")[0]
    old = line.engine == "tensorrt" and not (major.isdigit() and int(major) >= 10)
    name = f"{line.name} ({line.engine} {line.version})"
    return LintTarget(name, True, True, line.opset_cap, transposed_int8=not old, inner_bytes=False)


def check_engines(graphs: Mapping[str, Mapping[str, onnx.ModelProto]], profile: DeviceProfile) -> None:
    """Check graphs, by variant and stage, against every TensorRT of the device. Raises `SpecError` naming the node.

    `int8-u8` is for CPU engines and is not checked. `int8-fp16` is checked for lines that read its opset.
    """
    for line in tensorrt_lines(profile):
        for variant, stages in graphs.items():
            if variant == UNSIGNED or (variant == HALF_INT8 and line.opset_cap < HALF_SCALES):
                continue
            for stage in (s for s in STAGES if s in stages):
                check_lint(stages[stage], target_of_line(line), f"{variant} {stage}", None, REMEDY)
