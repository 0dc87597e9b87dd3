"""The ways to run a checkpoint on an NVIDIA GPU that `benchmarks.gpu.peers` measures, as data."""

from __future__ import annotations

from dataclasses import dataclass

FP32, FP16 = "fp32", "fp16"
EAGER, COMPILE, GRAPH, FRAME_GRAPH, ONNX = "eager", "compile", "graph", "frame-graph", "onnxruntime"


@dataclass(frozen=True)
class GpuMethod:
    """One way to run a model.

    `runner`: what runs the stages. `precision`: of all weights and of what flows between stages. For ONNX Runtime it is
    the bundle's variant. `mode`: of torch.compile, or ``graph`` if ONNX Runtime captures CUDA graphs. `tuned`: cuDNN
    searches for algorithms, and in FP16 the renderer's weights lie channels last. `asked`: measured only if it is
    named. `how`: what a reader must know of it.
    """

    name: str
    label: str
    runner: str
    precision: str
    how: str
    mode: str = ""
    tuned: bool = False
    asked: bool = False

    @property
    def captures(self) -> bool:
        """Whether it needs CUDA graphs."""
        return self.runner in (GRAPH, FRAME_GRAPH) or (self.runner == ONNX and self.mode == "graph")


_LOADED = (
    "the checkpoint's modules as load_checkpoint gives them, moved to the GPU{half}: evaluation and inference "
    "mode, BatchNorm not folded, contiguous, cuDNN's defaults"
)
_WAYS = (
    ("torch-eager", "PyTorch eager", EAGER, "", False, False, "; called one after another"),
    (
        "torch-graph",
        "PyTorch, CUDA graphs",
        GRAPH,
        "",
        False,
        False,
        "; motion step (its state written back within) and renderer captured as one graph each, text as well where it "
        "can be",
    ),
    (
        "torch-frame-graph",
        "PyTorch, a graph a frame, tuned",
        FRAME_GRAPH,
        "",
        True,
        False,
        " but cudnn.benchmark and, in FP16, channels last; motion steps and the render of a call are one graph",
    ),
    ("ort", "ONNX Runtime CUDA", ONNX, "", False, False, ""),
    (
        "ort-graph",
        "ONNX Runtime, CUDA graphs",
        ONNX,
        "graph",
        False,
        False,
        "; enable_cuda_graph: each stage is captured at its second run",
    ),
    (
        "torch-compile-graphs",
        "torch.compile, reduce-overhead",
        COMPILE,
        "reduce-overhead",
        False,
        False,
        "; torch.compile(mode='reduce-overhead', dynamic=False), outputs copied out before the next call",
    ),
    ("torch-compile", "torch.compile", COMPILE, "default", False, False, "; torch.compile(dynamic=False)"),
    (
        "torch-compile-max",
        "torch.compile, max-autotune",
        COMPILE,
        "max-autotune",
        False,
        True,
        "; torch.compile(mode='max-autotune', dynamic=False), outputs copied out before the next call",
    ),
)


def _method(way: tuple[str, str, str, str, bool, bool, str], precision: str) -> GpuMethod:
    name, label, runner, mode, tuned, asked, more = way
    loaded = _LOADED.format(half=", .half()" if precision == FP16 else "")
    how = (
        loaded + more
        if runner != ONNX
        else (
            f"the bundle's {precision} graphs (a stage without one: the bundle's default), session defaults, inputs "
            f"and outputs bound to GPU memory, float32 between stages{more}"
        )
    )
    return GpuMethod(f"{name}-{precision}", f"{label}, {precision.upper()}", runner, precision, how, mode, tuned, asked)


def _slow(method: GpuMethod) -> tuple[bool, bool, bool]:
    compiled = method.runner == COMPILE
    return compiled, method.asked, compiled and method.precision == FP32


# What is quick comes first, and torch.compile, which takes most of the time, in FP16 first: a run that is cut short
# has the figures that are compared most.
GPU_METHODS = tuple(sorted((_method(way, precision) for way in _WAYS for precision in (FP16, FP32)), key=_slow))


def gpu_method(name: str) -> GpuMethod:
    """The method of that name; raises KeyError."""
    return {method.name: method for method in GPU_METHODS}[name]
