"""Tidying of an exported ONNX graph: constants folded and shared, BatchNorm folded, nothing left of the machine."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from t2v_edge.errors import SpecError
from t2v_edge.spec import StageSpec, TensorSpec

Array = NDArray[np.generic]
MAX_FOLDED_ELEMENTS = 1 << 16
IR_VERSION = 8  # the newest that goes with opset 17; every ONNX Runtime since 1.12 reads it
UNFOLDABLE = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Loop",
    "If",
    "Scan",
    "QuantizeLinear",
    "DequantizeLinear",
}
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def clean(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph without folded-away nodes, machine traces and duplicate constants; its outputs named by `spec`."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    _name_outputs(model.graph, spec)
    _lift_constants(model.graph)
    model = fold_constants(model)
    fold_batch_norm(model.graph)
    fold_pixels(model.graph)
    _drop_unused(model.graph)
    _share_constants(model.graph)
    _rename(model.graph, spec)
    return strip(model, spec)


def _name_outputs(graph: onnx.GraphProto, spec: StageSpec) -> None:
    """Give every output a value of its own: a state may pass through, and two outputs may be one tensor."""
    seen = {i.name for i in graph.input}
    for output, wanted in zip(graph.output, spec.outputs):
        if output.name != wanted.name or output.name in seen:
            graph.node.append(helper.make_node("Identity", [output.name], [wanted.name], name=f"/{wanted.name}"))
            output.name = wanted.name
        seen.add(output.name)


def constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """The graph's initializers as arrays by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _lift_constants(graph: onnx.GraphProto) -> None:
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        array = (
            numpy_helper.to_array(value)
            if isinstance(value, onnx.TensorProto)
            else np.asarray(value, dtype=np.float32 if "float" in attribute.name else np.int64)
        )
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        graph.node.remove(node)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace what depends on constants alone, shapes included (they are static), by its value.

    A result both large and larger than its inputs is left to the engine, so that files do not grow.
    """
    while True:
        model = onnx.shape_inference.infer_shapes(model)
        graph = model.graph
        _fix_shapes(graph)
        known = constants(graph)
        sizes = {name: array.size for name, array in known.items()}
        outputs = {o.name for o in graph.output}
        nodes: list[onnx.NodeProto] = []
        reached = set(known)
        for node in graph.node:
            if (
                node.op_type not in UNFOLDABLE
                and not outputs & set(node.output)
                and reached.issuperset(filter(None, node.input))
            ):
                nodes.append(node)
                reached.update(node.output)
        values = _evaluate(model, nodes, known)
        sizes.update({name: array.size for name, array in values.items()})
        folded = [
            n
            for n in nodes
            if max(sizes[o] for o in n.output) <= max([MAX_FOLDED_ELEMENTS, *(sizes[i] for i in n.input if i)])
        ]
        del graph.value_info[:]
        if not folded:
            return model
        for node in folded:
            graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(values[o]), o) for o in node.output)
            graph.node.remove(node)
        _drop_unused(graph)


def _fix_shapes(graph: onnx.GraphProto) -> None:
    """Turn Shape nodes of values with a static shape into constants."""
    shapes = {v.name: _static_shape(v) for v in [*graph.value_info, *graph.input]}
    for node in [n for n in graph.node if n.op_type == "Shape" and not n.attribute]:
        shape = shapes.get(node.input[0])
        if shape is not None:
            graph.initializer.append(numpy_helper.from_array(np.asarray(shape, dtype=np.int64), node.output[0]))
            graph.node.remove(node)


def _static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _evaluate(model: onnx.ModelProto, nodes: list[onnx.NodeProto], known: dict[str, Array]) -> dict[str, Array]:
    """All outputs of nodes that depend on known values alone."""
    names = [o for node in nodes for o in node.output if o]
    if not names:
        return {}
    made = set(names)
    feeds = {i: known[i] for node in nodes for i in node.input if i and i not in made}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    part = helper.make_graph(nodes, "constants", infos, [onnx.ValueInfoProto(name=name) for name in names])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = helper.make_model(part, opset_imports=model.opset_import, ir_version=IR_VERSION).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip(names, (np.asarray(value) for value in session.run(names, feeds))))


def fold_batch_norm(graph: onnx.GraphProto) -> None:
    """Fold BatchNorm, as it is in evaluation, into the convolution or linear layer before it (in place).

    y = gamma (Wx + b - mean) / sqrt(var + eps) + beta. A reshape between a linear layer and a norm over channels,
    and a pixel shuffle after a convolution, are looked through. A norm that follows anything else stays.
    """
    uses = Counter(i for node in graph.node for i in node.input)
    made_by = {o: node for node in graph.node for o in node.output}
    for norm in [n for n in graph.node if n.op_type == "BatchNormalization"]:
        known = constants(graph)
        before, between = made_by.get(norm.input[0]), None
        if before is not None and before.op_type in ("Reshape", "DepthToSpace") and uses[before.output[0]] == 1:
            between, before = before, made_by.get(before.input[0])
        foldable = (
            before is not None
            and before.op_type in WEIGHTED
            and uses[before.output[0]] == 1
            and all(i in known for i in before.input[1:])
        )
        if not foldable or before is None:
            continue
        gamma, beta, mean, variance = (known[name].astype(np.float64) for name in norm.input[1:5])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
        if between is not None:
            repeats = _channel_repeats(before, between, known, scale.size)
            if not repeats:
                continue
            scale, shift = np.repeat(scale, repeats), np.repeat(shift, repeats)
        _scale_layer(graph, before, known, scale, shift, norm.name)
        last = between or before
        if before.op_type == "MatMul":
            before.output[0], add_name = before.output[0] + "/scaled", before.output[0]
            shift_name = f"{norm.name}/shift"
            graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), shift_name))
            add = helper.make_node("Add", [before.output[0], shift_name], [add_name], name=f"{norm.name}/Add")
            graph.node.insert(list(graph.node).index(before) + 1, add)
            last = add
        last.output[0] = norm.output[0]
        made_by[norm.output[0]] = last
        graph.node.remove(norm)


def fold_pixels(graph: onnx.GraphProto) -> None:
    """Let a last convolution whose pixels are clipped give levels themselves (in place).

    Scales, offsets and clips behind a layer are one clip, the last of them, behind a layer whose weights are scaled,
    where no clip before it cuts off more. Squashing that is no clip, such as a sigmoid, stays.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    known, outputs = constants(graph), {o.name for o in graph.output}
    for layer in [n for n in graph.node if n.op_type in WEIGHTED and n.op_type != "MatMul"]:
        chain: list[tuple[onnx.NodeProto, list[float]]] = []
        made = layer.output[0]
        while made not in outputs and [n.op_type for n in readers.get(made, [])] in (["Mul"], ["Add"], ["Clip"]):
            node = readers[made][0]
            numbers = [known[i] for i in node.input if i in known]
            if any(n.size != 1 for n in numbers) or len(numbers) != (2 if node.op_type == "Clip" else 1):
                break
            chain.append((node, [float(n.reshape(())) for n in numbers]))
            made = node.output[0]
        while chain and chain[-1][0].op_type != "Clip":
            chain.pop()
        scale, shift, low, high = 1.0, 0.0, -np.inf, np.inf
        for node, numbers in chain[:-1]:
            if node.op_type == "Clip":
                low, high = max(low, numbers[0]), min(high, numbers[1])
                continue
            factor, term = (numbers[0], 0.0) if node.op_type == "Mul" else (1.0, numbers[0])
            scale *= factor
            shift, low, high = (x * factor + term for x in (shift, low, high))
        if len(chain) < 2 or scale <= 0 or not all(i in known for i in layer.input[1:]):
            continue
        last, (least, most) = chain[-1]
        if low > least or high < most:
            continue
        groups = _attribute(layer, "group", 1) if layer.op_type == "ConvTranspose" else 1
        size = known[layer.input[1]].shape[out_axis(layer)] * groups
        _scale_layer(graph, layer, known, np.full(size, scale), np.full(size, shift), f"{layer.name}/levels")
        last.input[0] = layer.output[0]
        for node, _ in chain[:-1]:
            graph.node.remove(node)


def _channel_repeats(layer: onnx.NodeProto, between: onnx.NodeProto, known: dict[str, Array], channels: int) -> int:
    """How many outputs of a layer, in a row, end up in each channel after a reshape or pixel shuffle; 0: not so."""
    features = int(known[layer.input[1]].shape[out_axis(layer)])
    if between.op_type == "DepthToSpace":
        shuffled = any(a.name == "mode" and a.s == b"CRD" for a in between.attribute)
        return features // channels if shuffled and layer.op_type == "Conv" else 0
    shape = known.get(between.input[1])
    if layer.op_type != "Gemm" or shape is None or shape.size < 3 or features != int(np.prod(shape[1:])):
        return 0
    return features // channels if shape[1] == channels else 0


def static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of a graph's inputs, outputs and values by name, 0 where a size is not known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in [*graph.value_info, *graph.input, *graph.output]
        if v.type.tensor_type.HasField("shape")
    }


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def out_axis(node: onnx.NodeProto) -> int:
    return 0 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else WEIGHTED[node.op_type]


def _scale_layer(
    graph: onnx.GraphProto, node: onnx.NodeProto, known: dict[str, Array], scale: Array, shift: Array, name: str
) -> None:
    """Give a layer new weights W * scale and, but for MatMul, a bias b * scale + shift."""
    weight = known[node.input[1]].astype(np.float64)
    if node.op_type == "ConvTranspose":  # (in, out / groups, ...): group g makes outputs g * out / groups and on
        groups = _attribute(node, "group", 1)
        per_input = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        weight = weight * per_input.reshape(*per_input.shape, *[1] * (weight.ndim - 2))
    else:
        shape = [1] * weight.ndim
        shape[out_axis(node)] = -1
        weight = weight * scale.reshape(shape)
    graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}/weight"))
    node.input[1] = f"{name}/weight"
    if node.op_type == "MatMul":
        return
    bias = known[node.input[2]].astype(np.float64) * scale + shift if len(node.input) > 2 else shift
    graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), f"{name}/bias"))
    del node.input[2:]
    node.input.append(f"{name}/bias")


def _drop_unused(graph: onnx.GraphProto) -> None:
    wanted = {o.name for o in graph.output}
    for node in reversed(list(graph.node)):
        if wanted.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            wanted.update(node.input)
    for tensor in [t for t in graph.initializer if t.name not in wanted]:
        graph.initializer.remove(tensor)


def _share_constants(graph: onnx.GraphProto) -> None:
    first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    renamed = {}
    for tensor in list(graph.initializer):
        array = numpy_helper.to_array(tensor)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key in first:
            renamed[tensor.name] = first[key]
            graph.initializer.remove(tensor)
        else:
            first[key] = tensor.name
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _rename(graph: onnx.GraphProto, spec: StageSpec) -> None:
    """Name constants that torch numbered (`onnx::Conv_12`) after the first node that reads them."""
    numbered = {t.name for t in graph.initializer if t.name.startswith("onnx::") or t.name.startswith("/")}
    names: dict[str, str] = {}
    taken = {t.name for t in [*graph.initializer, *graph.input]} | {o for n in graph.node for o in n.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in numbered and name not in names:
                fresh = f"{node.name.lstrip('/')}.{'weight' if index == 1 else f'constant{index}'}"
                while fresh in taken:
                    fresh += "_"
                taken.add(fresh)
                names[name] = fresh
            node.input[index] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def strip(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """A fresh model around the graph: declared static inputs and outputs, no doc strings, times or traces."""
    graph = model.graph
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
    made = helper.make_graph(
        list(graph.node),
        spec.stage,
        [_info(t) for t in spec.inputs],
        [_info(t) for t in spec.outputs],
        list(graph.initializer),
    )
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="t2v_edge"
    )


def _info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.shape))


def levels_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A render graph that gives `levels` besides: `frame` before rounding, float32, 0 to 255. Rounding hides small
    differences, and turns an arbitrarily small one into a whole level; verification looks before it. An INT8 graph
    whose computation ends on whole levels has no others.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    made_by = {o: node for node in graph.node for o in node.output}
    last = made_by["frame"]
    if last.op_type == "Cast" and made_by[last.input[0]].op_type == "Round":
        levels = helper.make_node("Identity", [made_by[last.input[0]].input[0]], ["levels"], name="/levels")
    else:
        levels = helper.make_node("Cast", ["frame"], ["levels"], name="/levels", to=onnx.TensorProto.FLOAT)
    graph.node.append(levels)
    output = graph.output.add()
    output.CopyFrom(graph.output[0])
    output.name, output.type.tensor_type.elem_type = "levels", onnx.TensorProto.FLOAT
    return model


def check_graph(model: onnx.ModelProto, spec: StageSpec) -> None:
    """onnx's checker and strict shape inference; raises `SpecError` where a graph breaks the contract."""
    try:
        onnx.checker.check_model(model)  # the full check is this one and the next
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise SpecError(f"stage {spec.stage}: the exported graph is not valid ONNX: {error}") from error
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if domains:
        raise SpecError(
            f"stage {spec.stage}: operators of {', '.join(sorted(domains))} are not in every engine; use plain "
            "torch operators"
        )
    made_by = {o: n.op_type for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and made_by.get(node.input[0]) in WEIGHTED:
            raise SpecError(
                f"stage {spec.stage}: BatchNorm {node.name} was not folded; its convolution's output is used elsewhere"
            )
