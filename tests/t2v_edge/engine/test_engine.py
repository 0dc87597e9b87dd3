from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from t2v_edge.engine import registry as engine
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import ENGINES, available_engines, open_engine
from t2v_edge.engine.tensorrt import api as trt
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import StageSpec, TensorSpec


@pytest.fixture(params=ENGINES)
def name(request):
    """Each engine; skipped where its library is absent."""
    if request.param not in available_engines():
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def motion(name, build_graph, specs):
    with open_engine(name, build_graph("motion"), specs["motion"], EngineOptions(1)) as opened:
        yield opened


def feeds_of(spec):
    random = np.random.default_rng(0)
    return {tensor.name: random.standard_normal(tensor.shape).astype(tensor.dtype) for tensor in spec.inputs}


def test_the_engine_computes_the_graph(motion, build_graph):
    import onnx
    from onnx.reference import ReferenceEvaluator

    feeds = feeds_of(motion.spec)
    results = motion.run(feeds)
    names = [tensor.name for tensor in motion.spec.outputs]
    assert list(results) == names
    reference = ReferenceEvaluator(onnx.load_from_string(build_graph("motion")))
    for name, expected in zip(names, reference.run(names, feeds)):
        np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_results_stay_valid_after_the_next_run(motion):
    feeds = feeds_of(motion.spec)
    first = motion.run(feeds)["motion"]
    kept = first.copy()
    motion.run({name: array + 1 for name, array in feeds.items()})
    assert np.array_equal(first, kept)


def test_results_and_feeds_stay_their_callers(motion):
    feeds = feeds_of(motion.spec)
    for array in feeds.values():
        array.setflags(write=False)  # as a stream's condition is
    results = motion.run(feeds)
    expected = {name: array.copy() for name, array in results.items()}
    for array in results.values():
        array += 1
    again = motion.run(feeds)
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_feeds_need_not_be_contiguous(motion):
    feeds = feeds_of(motion.spec)
    strided = {name: np.repeat(array, 2, axis=1)[:, ::2] for name, array in feeds.items()}
    expected, results = motion.run(feeds), motion.run(strided)
    assert all(np.array_equal(results[name], expected[name]) for name in expected)


def test_threads_may_share_an_engine(motion):
    feeds = [{name: array + i for name, array in feeds_of(motion.spec).items()} for i in range(8)]
    expected = [motion.run(f)["motion"] for f in feeds]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for found, wanted in zip(pool.map(lambda f: motion.run(f)["motion"], feeds), expected):
                assert np.array_equal(found, wanted)


def test_two_results_of_one_tensor_are_two_arrays(name, build_graph, specs):
    def repeat(nodes, weights):
        nodes[-1].output[0] = "inner"
        nodes.append(helper.make_node("Identity", ["inner"], ["motion"]))

    with open_engine(name, build_graph("motion", repeat), specs["motion"], EngineOptions(1)) as opened:
        results = opened.run(feeds_of(opened.spec))
    assert not np.shares_memory(results["motion"], results["next.hidden"])


@pytest.mark.parametrize("name_of_type", ["float16", "uint8", "int32", "bool"])
def test_results_of_any_type_come_as_the_contract_says(name, name_of_type):
    spec = StageSpec("text", (TensorSpec("x", (1, 3), "int64"),), (TensorSpec("y", (1, 3), name_of_type),))
    number = helper.np_dtype_to_tensor_dtype(np.dtype(name_of_type))
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=number)],
        "cast",
        [helper.make_tensor_value_info("x", TensorProto.INT64, (1, 3))],
        [helper.make_tensor_value_info("y", number, (1, 3))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with open_engine(name, model.SerializeToString(), spec, EngineOptions(1)) as opened:
        result = opened.run({"x": np.array([[0, 1, 200]])})["y"]
    assert result.dtype == np.dtype(name_of_type)
    assert np.array_equal(result, np.array([[0, 1, 200]]).astype(name_of_type))


def test_float32_is_computed_in_float32(name):
    # OpenVINO would take bfloat16, with 8 bits of mantissa, on CPUs that have it, and float16 on Arm.
    spec = StageSpec("text", (TensorSpec("x", (1, 256)),), (TensorSpec("y", (1, 256)),))
    random = np.random.default_rng(0)
    weight = random.standard_normal((256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 256))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 256))],
        [helper.make_tensor("w", TensorProto.FLOAT, (256, 256), weight.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = random.standard_normal((1, 256)).astype(np.float32)
    with open_engine(name, model.SerializeToString(), spec, EngineOptions(1)) as opened:
        result = opened.run({"x": x})["y"]
    # Sums of 256 products of size 1: float32 errs by about 1e-5, bfloat16 by about 0.1.
    np.testing.assert_allclose(result, x.astype(np.float64) @ weight, atol=1e-3)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda f: f.pop("noise.code"), "input noise.code is missing"),
        (lambda f: f.update({"condition": f["condition"][0]}), r"float32\[4\], the graph takes float32\[1, 4\]"),
        (lambda f: f.update({"condition": f["condition"].astype(np.float64)}), "condition is float64"),
        (lambda f: f.update({"more": f["condition"]}), "takes no input more"),
    ],
)
def test_feeds_that_break_the_contract_are_named(motion, change, match):
    feeds = feeds_of(motion.spec)
    change(feeds)
    with pytest.raises(EngineError, match=match):
        motion.run(feeds)


def test_a_graph_of_another_stage_is_refused(name, build_graph, specs):
    with pytest.raises(EngineError, match="contract"):
        open_engine(name, build_graph("motion"), specs["render"], EngineOptions())


def test_a_graph_that_takes_another_shape_is_refused(name, build_graph, specs):
    wider = replace(specs["motion"], feeds=(TensorSpec("condition", (1, 5)),))
    with pytest.raises(EngineError, match="takes .* contract"):
        open_engine(name, build_graph("motion"), wider, EngineOptions())


def test_what_the_engine_cannot_load_is_an_engine_error(name, specs):
    with pytest.raises(EngineError, match="cannot load the text graph"):
        open_engine(name, b"not onnx", specs["text"], EngineOptions())


def test_an_operator_that_the_engine_lacks_is_an_engine_error_of_one_line(name, build_graph, specs):
    def spoil(nodes, weights):
        nodes[2].op_type = "Tanhh"

    with pytest.raises(EngineError, match="Tanhh") as caught:
        open_engine(name, build_graph("motion", spoil), specs["motion"], EngineOptions())
    assert "\n" not in str(caught.value).strip()


def test_token_ids_outside_the_vocabulary_are_an_engine_error(build_graph, specs):
    # ONNX Runtime checks indices; OpenVINO answers zeros for those outside, which is as safe and less helpful.
    with open_engine("onnxruntime", build_graph("text"), specs["text"], EngineOptions(1)) as text:
        ones = np.ones((1, 8), np.int64)
        with pytest.raises(EngineError, match="failed in the text stage"):
            text.run({"input_ids": ones * 10_000, "attention_mask": ones})


def test_a_closed_engine_says_so(motion):
    motion.close()
    with pytest.raises(EngineError, match="closed"):
        motion.run(feeds_of(motion.spec))


def test_an_absent_engine_names_what_to_install(monkeypatch):
    for module in (engine, trt):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert available_engines() == ()
    for name, extra in (("auto", "cpu"), ("onnxruntime", "cpu"), ("openvino", "openvino")):
        with pytest.raises(EngineError, match=rf"pip install 't2v-edge\[{extra}\]'"):
            engine.check_engine(name)


def test_an_engine_that_is_installed_and_broken_is_an_engine_error(name, build_graph, specs, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda module: object())
    monkeypatch.delitem(sys.modules, f"t2v_edge.engine.{name}", raising=False)
    monkeypatch.setitem(sys.modules, ENGINES[name], None)  # importing it now raises ImportError
    with pytest.raises(EngineError, match="install it again"):
        open_engine(name, build_graph("motion"), specs["motion"], EngineOptions())


def test_an_unknown_engine_is_wrong_use():
    with pytest.raises(UsageError, match="onnxruntime, openvino"):
        engine.check_engine("abacus")


def test_the_same_engine_gives_the_same_frames_and_engines_differ_by_rounding(bundle_path):
    def frames(name):
        with Pipeline.open(bundle_path, engine=name, threads=1) as pipeline:
            assert set(pipeline.engines.values()) == {name}
            return np.stack([f.pixels for f in pipeline.stream("a person is walking", seconds=1, seed=3)])

    first = {name: frames(name) for name in available_engines()}
    for name, made in first.items():
        assert np.array_equal(frames(name), made)
        # One level where a value lies on the edge between two; the tiny graph has no depth to amplify rounding.
        assert np.abs(made.astype(int) - first["onnxruntime"]).max() <= 1


@pytest.mark.parametrize("threads", [0, -1, 1000])
def test_thread_counts_out_of_range_are_refused(threads):
    with pytest.raises(UsageError, match="threads"):
        EngineOptions(threads)


def test_pixels_rounded_to_bytes_before_or_after_a_transposition_are_the_same(name):
    """The graph's end as the exporter makes it, halves and values out of range included; a second reader keeps it."""
    nodes = [
        helper.make_node("Clip", ["levels", "low", "high"], ["clipped"]),
        helper.make_node("Transpose", ["clipped"], ["image"], perm=[0, 2, 3, 1]),
        helper.make_node("Round", ["image"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["frame"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["clipped"], ["other"], perm=[0, 3, 2, 1]),
        helper.make_node("Cast", ["rounded"], ["kept"], to=TensorProto.FLOAT),
    ]
    for kept in (("frame",), ("frame", "other", "kept")):
        spec = StageSpec(
            "render",
            (TensorSpec("levels", (1, 3, 4, 5)),),
            tuple(
                TensorSpec(n, (1, 5, 4, 3) if n == "other" else (1, 4, 5, 3), "uint8" if n == "frame" else "float32")
                for n in kept
            ),
        )
        constants = [
            helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("high", TensorProto.FLOAT, [], [255.0]),
        ]
        types = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
        graph = helper.make_graph(
            [n for n in nodes if n.output[0] in ("clipped", "image", "rounded", *kept)],
            "tail",
            [helper.make_tensor_value_info("levels", TensorProto.FLOAT, [1, 3, 4, 5])],
            [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in spec.outputs],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        levels = (np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5) - 4) * 4.5
        with open_engine(name, model.SerializeToString(), spec, EngineOptions(1)) as opened:
            made = opened.run({"levels": levels})
        image = np.rint(levels.clip(0, 255)).transpose(0, 2, 3, 1)
        assert np.array_equal(made["frame"], image.astype(np.uint8))
        if len(kept) > 1:
            assert np.array_equal(made["other"], levels.clip(0, 255).transpose(0, 3, 2, 1))
            assert np.array_equal(made["kept"], image)


def test_a_contract_makes_its_tensors_once(specs):
    spec = specs["motion"]
    assert spec.inputs is spec.inputs and spec.outputs is spec.outputs
    other = replace(spec, states=())
    assert len(other.inputs) < len(spec.inputs) and other != spec and replace(spec) == spec
