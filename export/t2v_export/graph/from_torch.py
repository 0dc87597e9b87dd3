"""Export of a stage's torch module to an ONNX graph: static shapes, batch 1, the contract's names."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from t2v_edge.errors import CheckpointError, SpecError
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.graph.clean import check_graph, clean

OPSET, MIN_OPSET = 17, 13


class PixelFrames(nn.Module):
    """A render module with its post-processing: uint8 NHWC RGB out, rounded half to even.

    `levels` gives the frames before rounding: float32 (batch, H, W, 3), 0 to 255.
    """

    def __init__(self, render: nn.Module) -> None:
        super().__init__()
        self.render = render
        pixel_range = getattr(render, "pixel_range", "-1..1")
        if pixel_range not in ("-1..1", "0..1"):
            raise SpecError(f"stage render: pixel_range {pixel_range!r} must be '-1..1' or '0..1'")
        self.scale, self.offset = (127.5, 127.5) if pixel_range == "-1..1" else (255.0, 0.0)

    def levels(self, *inputs: Tensor) -> Tensor:
        image: Tensor = self.render(*inputs)
        return (image * self.scale + self.offset).clamp(0, 255).permute(0, 2, 3, 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        # The cast comes last: TensorRT knows uint8 only at the border of a graph.
        return self.levels(*inputs).round().to(torch.uint8)


def example_inputs(spec: StageSpec, seed: int = 0) -> tuple[Tensor, ...]:
    """Tensors of the contract's shapes to trace with. Half of the mask is ones, so that masking is traced too."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for tensor in spec.inputs:
        if tensor.dtype == "int64":
            example = torch.ones(tensor.shape, dtype=torch.int64)
            if tensor.name == "attention_mask":
                example[:, max(1, tensor.shape[-1] // 2) :] = 0
        else:
            example = torch.rand(tensor.shape, generator=generator)
        made.append(example)
    return tuple(made)


def check_outputs(spec: StageSpec, outputs: Sequence[Tensor]) -> None:
    """Compare a module's outputs with its contract. Raises `SpecError`, which names the output."""
    if len(outputs) != len(spec.outputs):
        names = ", ".join(o.name for o in spec.outputs)
        raise SpecError(
            f"stage {spec.stage}: forward returned {len(outputs)} tensors, its spec lists {len(spec.outputs)}: {names}"
        )
    for tensor, wanted in zip(outputs, spec.outputs):
        got = TensorSpec(wanted.name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if got != wanted:
            raise SpecError(
                f"stage {spec.stage}: {wanted.name} is {got.dtype} {got.shape}, its spec says {wanted.dtype} "
                f"{wanted.shape}"
            )


def run_torch(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a stage module, run without gradients; always a tuple."""
    with torch.no_grad():
        outputs = module(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def stage_to_onnx(module: nn.Module, spec: StageSpec, opset: int = OPSET) -> onnx.ModelProto:
    """The float32 graph of a stage in evaluation mode; `spec` is the bundle's contract (`Checkpoint.specs`).

    onnx's checker and shape inference accept it. The same module and opset give the same bytes. Raises `SpecError` if
    outputs differ from the contract, and `CheckpointError` if torch cannot export the module.
    """
    if not MIN_OPSET <= opset <= OPSET:
        raise CheckpointError(
            f"opset {opset} is outside {MIN_OPSET} to {OPSET}, which this exporter writes; use a newer engine"
        )
    traced = PixelFrames(module) if spec.stage == "render" else module
    traced.eval()
    inputs = example_inputs(spec)
    buffer = io.BytesIO()
    try:
        check_outputs(spec, run_torch(traced, inputs))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # The tracing exporter: torch.export's writes opset 18 and up, and a device may be capped at 17.
            torch.onnx.export(
                traced,
                inputs,
                buffer,  # type: ignore[arg-type]  # with dynamo off torch takes one
                dynamo=False,
                opset_version=opset,
                do_constant_folding=True,
                input_names=[t.name for t in spec.inputs],
                output_names=[t.name for t in spec.outputs],
            )
    except SpecError:
        raise
    except Exception as error:  # torch raises many kinds here, from the module's own code too
        raise CheckpointError(
            f"stage {spec.stage} cannot be exported: {error}; use plain tensor operators of static shape"
        ) from error
    model = clean(onnx.load_from_string(buffer.getvalue()), spec)
    check_graph(model, spec)
    return model
