from __future__ import annotations

import numpy as np
import pytest

from t2v_edge import engine
from t2v_edge.engine import EngineOptions, available_engines, open_engine
from t2v_edge.errors import EngineError, UsageError


@pytest.fixture
def motion(build_graph, specs):
    with open_engine("onnxruntime", build_graph("motion"), specs["motion"], EngineOptions(1)) as opened:
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


@pytest.mark.parametrize("change, match", [
    (lambda f: f.pop("noise.code"), "input noise.code is missing"),
    (lambda f: f.update({"condition": f["condition"][0]}), r"float32\[4\], the graph takes float32\[1, 4\]"),
    (lambda f: f.update({"condition": f["condition"].astype(np.float64)}), "condition is float64"),
    (lambda f: f.update({"more": f["condition"]}), "takes no input more"),
])
def test_feeds_that_break_the_contract_are_named(motion, change, match):
    feeds = feeds_of(motion.spec)
    change(feeds)
    with pytest.raises(EngineError, match=match):
        motion.run(feeds)


def test_a_graph_of_another_stage_is_refused(build_graph, specs):
    with pytest.raises(EngineError, match="contract"):
        open_engine("onnxruntime", build_graph("motion"), specs["render"], EngineOptions())


def test_what_the_engine_cannot_load_is_an_engine_error(specs):
    with pytest.raises(EngineError, match="cannot load the text graph"):
        open_engine("onnxruntime", b"not onnx", specs["text"], EngineOptions())


def test_token_ids_outside_the_vocabulary_are_an_engine_error(build_graph, specs):
    with open_engine("auto", build_graph("text"), specs["text"], EngineOptions(1)) as text:
        ones = np.ones((1, 8), np.int64)
        with pytest.raises(EngineError, match="failed in the text stage"):
            text.run({"input_ids": ones * 10_000, "attention_mask": ones})


def test_a_closed_engine_says_so(motion):
    motion.close()
    with pytest.raises(EngineError, match="closed"):
        motion.run(feeds_of(motion.spec))


def test_an_absent_engine_names_what_to_install(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert available_engines() == ()
    for name in ("auto", "onnxruntime"):
        with pytest.raises(EngineError, match=r"pip install 't2v-edge\[cpu\]'"):
            engine.choose_engine(name)


def test_an_unknown_engine_is_wrong_use():
    with pytest.raises(UsageError, match="onnxruntime"):
        engine.choose_engine("abacus")


@pytest.mark.parametrize("threads", [0, -1, 1000])
def test_thread_counts_out_of_range_are_refused(threads):
    with pytest.raises(UsageError, match="threads"):
        EngineOptions(threads)
