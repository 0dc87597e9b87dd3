"""One run of a stage's module in which every number carries the label of its unit.

A dispatch mode sees each operator that torch runs. Operators that move numbers (reshape, slices, concatenation, pixel
shuffle) move their labels too. Operators that compute number by number unite the labels that meet. A product with a
weight joins its inputs to one axis of the weight, and labels its outputs by the other axis.

So flattened stems, gate blocks, residual sums, skip connections and shared weights need no rules of their own, and a
user's classes work as well. DepGraph (Fang et al., CVPR 2023) finds such groups layer by layer, without GRUs and
computation outside of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.cost import example_inputs, plain_kernels
from t2v_export.compress.prune.labels import Labels, Tag, TracedProduct
from t2v_export.compress.prune.tensors import along
from t2v_export.compress.prune.units import FIXED, Atoms, Family, Place, find_families


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run showed: prunable families, the axes by which weights read, products, tables read by token id."""

    families: tuple[Family, ...]
    readers: frozenset[Place]
    calls: tuple[TracedProduct, ...]
    tables: tuple[str, ...]
    sizes: Mapping[Place, int]


def trace_stage(module: nn.Module, spec: StageSpec) -> Trace:
    """Run `module` once on the shapes of `spec`, batch 1, and read its families of units."""
    atoms = Atoms()
    mode = Labels(atoms)
    for name, tensor in {**dict(module.named_parameters()), **_stored_buffers(module)}.items():
        mode.add_weight(name, tensor)
    inputs, states = example_inputs(spec), {s.input for s in spec.states}
    fed = {tensor.name: value for tensor, value in zip(spec.inputs, inputs)}
    for given, value in zip(spec.inputs, inputs):
        labels = torch.full(given.shape, FIXED)
        if given.name in states:
            axis = 1 if len(given.shape) != 3 else 2
            labels = along(atoms.add((given.name, axis), given.shape[axis]), axis, given.shape)
            atoms.touched.add((given.name, axis))
        elif given.name == "input_ids":
            mode.ids = value
        mode.tags[value] = Tag((labels,))
    with torch.no_grad(), plain_kernels(), mode:
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for made, value in zip(spec.outputs, outputs):
        labels = mode.labels(value)
        state = next((s for s in spec.states if s.output == made.name), None)
        if state is None:
            atoms.freeze(labels)
        else:
            mode.meet([labels, mode.labels(fed[state.input])], made.shape)
    _join_starts(module, spec, mode, fed)
    return Trace(find_families(atoms), frozenset(mode.readers), tuple(mode.calls), tuple(mode.tables), atoms.sizes)


def _stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in module.state_dict(keep_vars=True).items() if v.is_floating_point()}


def _join_starts(module: nn.Module, spec: StageSpec, mode: Labels, inputs: Mapping[str, Tensor]) -> None:
    """A stored start that is a weight has the units of its state; no operator shows that."""
    for state in (s for s in spec.states if s.start == "stored"):
        for name, tensor in _stored_buffers(module).items():
            same = tuple(tensor.shape) == state.shape and name.endswith(state.name)
            if same and tensor.flatten().tolist() == list(state.value):
                axis = 1 if tensor.ndim != 3 else 2
                mode.atoms.touched.add((name, axis))
                mode.atoms.unify(mode.tags[tensor].axes[axis], mode.labels(inputs[state.input]))
