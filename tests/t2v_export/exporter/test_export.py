from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden, verify_bundle
from t2v_edge.cli import main
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import available_engines, open_engine
from t2v_edge.errors import CheckpointError, T2VError, UsageError
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.config import StageConfig
from t2v_export.commands import export as command
from t2v_export.errors import AccuracyError
from t2v_export.exporter import export
from t2v_export.exporter.captions import DEFAULT_CAPTIONS
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.passes import float32, latency
from t2v_export.verify.difference import Difference, StageDifference, check_accuracy, compare
from t2v_export.verify.latency import GraphLatency

UNTIMED = ExportOptions(measure=False)
EXAMPLES = Path(__file__).parents[3] / "examples" / "custom_stages"


def play(bundle: Path, variant: str | None = None) -> np.ndarray:
    with Pipeline.open(bundle, variant=variant) as pipeline:
        frames = pipeline.stream(caption="a person is walking", seconds=0.5)
        return np.stack([frame.pixels.copy() for frame in frames])


def test_bundle_holds_what_was_promised(make_checkpoint, cpu, tmp_path):
    exported = export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, ExportOptions(ship="all"))
    with Bundle.open(tmp_path / "bundle") as bundle:
        verify_bundle(bundle)
        manifest = bundle.manifest
        assert set(manifest.variants) == {"fp32", "fp16"}
        assert manifest.provenance["seed"] == 0 and len(manifest.provenance["checkpoint_sha256"]) == 64
        assert all(entry.opset == 17 for graphs in manifest.variants.values() for entry in graphs.values())
        for variant, tolerance in (("fp32", 1e-4), ("fp16", 1e-2)):
            for stage in STAGES:
                assert 0 <= manifest.quality[variant][stage]["max_rel"] <= tolerance
        report = json.loads(bundle.read("report.json"))
        assert bundle.read("README.md") == b"# tiny\n"
    assert report["verification"]["captions"] >= 12 and report["verification"]["steps"] >= 64
    assert set(report["latency"]["fp16"]["render"]) == set(available_engines())
    assert all(latency["median_ms"] > 0 for latency in report["latency"]["fp16"]["render"].values())
    assert exported.report == report
    assert play(tmp_path / "bundle").std() > 1


def test_the_runtime_proves_itself_by_the_golden_vectors(make_checkpoint, cpu, tmp_path):
    export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, ExportOptions(measure=False, ship="all"))
    with Bundle.open(tmp_path / "bundle") as bundle:
        golden = Golden.read(bundle)
        specs = bundle.manifest.stages
        engines = {
            (v, s): open_engine("onnxruntime", bundle.graph(v, s), specs[s], EngineOptions())
            for v in ("fp32", "fp16")
            for s in STAGES
        }
    assert golden is not None and golden.captions == DEFAULT_CAPTIONS and golden.steps == 64
    found = {key: golden.check(key[1], engine.run) for key, engine in engines.items()}
    assert all(golden.tolerance(stage, variant).allows(found[variant, stage]) for variant, stage in engines)
    # Far inside the bounds, and not by comparing nothing.
    assert 0 < found["fp32", "motion"].max_rel < 1e-4 < found["fp16", "text"].max_rel < 1e-2
    assert found["fp32", "render"].psnr_db > 90 > found["fp16", "render"].psnr_db


def test_golden_vectors_are_what_the_runtime_makes(make_checkpoint, cpu, tmp_path):
    export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, UNTIMED)
    with Bundle.open(tmp_path / "bundle") as bundle:
        golden = Golden.read(bundle).arrays
        specs = bundle.manifest.stages
        engines = {s: open_engine("onnxruntime", bundle.graph("fp32", s), specs[s], EngineOptions()) for s in STAGES}
    assert golden["captions"].tolist() == list(DEFAULT_CAPTIONS)
    feeds = {"input_ids": golden["input_ids"][3:4], "attention_mask": golden["attention_mask"][3:4]}
    condition = golden["condition"]
    np.testing.assert_allclose(engines["text"].run(feeds)["condition"], condition[3:4], atol=1e-5)
    state = golden["start.h0"]
    assert golden["motion"].shape[0] == 64 and golden["motion.noise.step"].shape[0] == 64
    for step in range(64):
        feeds = {"condition": condition[:1], "noise.step": golden["motion.noise.step"][step : step + 1]}
        made = engines["motion"].run({**feeds, "state.h0": state})
        state = made["next.h0"]
        np.testing.assert_allclose(made["motion"], golden["motion"][step : step + 1], atol=1e-5)
    assert golden["next.h0"].shape == state.shape
    np.testing.assert_allclose(state, golden["next.h0"], atol=1e-5)
    for index, step in enumerate(golden["frame_steps"]):
        feeds = {"motion": golden["motion"][step : step + 1], "condition": condition[:1]}
        frame = engines["render"].run({**feeds, "noise.content": golden["render.noise.content"]})["frame"]
        assert np.abs(frame.astype(int) - golden["frames"][index]).max() <= 1


def test_lstm_and_transposed_convolutions_at_128_pixels(make_checkpoint, cpu, tmp_path):
    folder = make_checkpoint(
        side=128,
        motion=StageConfig("recurrent", {"cell": "lstm", "layers": 2, "hidden": 16, "noise": 3}),
        render=StageConfig("upsample", {"channels": [32, 16, 8, 8], "upsample": "transpose"}),
    )
    exported = export_checkpoint(folder, tmp_path / "bundle", cpu, UNTIMED)
    assert [s.name for s in exported.manifest.stages["motion"].states] == ["h0", "c0", "h1", "c1"]
    full, half = (play(tmp_path / "bundle", variant).astype(int) for variant in ("fp32", "fp16"))
    assert full.shape == (8, 128, 128, 3) and full.std() > 1
    assert np.abs(full - half).max() <= 3  # a hundredth of 255, and the rounding


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
    config = transformers.BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_transformers_encoder_exports_and_is_saved_without_its_pooler(make_checkpoint, encoder_folder, cpu, tmp_path):
    options = {"tokens": 12, "pooling": "attention", "queries": 3, "groups": [4, 2]}
    folder = make_checkpoint(folder=encoder_folder, text=StageConfig("transformers", options))
    assert b"pooler" not in (folder / "encoder" / "model.safetensors").read_bytes()
    exported = export_checkpoint(folder, tmp_path / "bundle", cpu, UNTIMED)
    assert exported.differences["fp32"]["text"].max_rel < 1e-5
    assert exported.differences["fp16"]["text"].max_rel > exported.differences["fp32"]["text"].max_rel
    with Bundle.open(tmp_path / "bundle") as bundle:
        graph = onnx.load_from_string(bundle.graph("fp32", "text"))
        np.testing.assert_allclose(Golden.read(bundle).arrays["condition"][:, :4].sum(1), 1, atol=1e-5)
    assert not {"If", "Loop", "Shape", "ConstantOfShape"} & {n.op_type for n in graph.graph.node}


SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = {
    "RobertaConfig": {**SMALL, "max_position_embeddings": 32, "pad_token_id": 1},
    "DistilBertConfig": {"vocab_size": 50, "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    "CLIPTextConfig": {**SMALL, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    "T5Config": {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_families_export_and_come_back(make_checkpoint, cpu, tmp_path, family):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, family)(**FAMILIES[family])
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    text = StageConfig("transformers", {"tokens": 12, "pooling": "attention", "queries": 2})
    folder = make_checkpoint(folder=tmp_path / "encoder", text=text)
    exported = export_checkpoint(folder, tmp_path / "bundle", cpu, UNTIMED)
    assert exported.differences["fp32"]["text"].max_rel < 1e-5


@pytest.mark.parametrize("change", ["auto_map", "missing"])
def test_encoder_that_asks_for_code_or_lacks_weights_is_refused(make_checkpoint, encoder_folder, change):
    import safetensors.torch

    folder = make_checkpoint(folder=encoder_folder, text=StageConfig("transformers", {"tokens": 12}))
    path = folder / "encoder" / ("config.json" if change == "auto_map" else "model.safetensors")
    if change == "auto_map":
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))
    else:
        tensors = safetensors.torch.load_file(path)
        tensors.pop("encoder.layer.1.output.dense.weight")
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"auto_map|1 weights are missing.*encoder\.layer\.1\.output\.dense"):
        export.load_checkpoint(folder)


@pytest.mark.parametrize("name", ["mocogan", "tfgan"])
def test_examples_of_custom_stages_export_and_run(name, cpu, tmp_path):
    command_line = [sys.executable, str(EXAMPLES / "make_checkpoint.py"), name, str(tmp_path / "checkpoint")]
    subprocess.run(command_line, check=True, capture_output=True, env=_environment())
    with pytest.raises(CheckpointError, match="--allow-code"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", cpu, UNTIMED)
    assert not (tmp_path / "bundle").exists()
    options = ExportOptions(measure=False, allow_code=True)
    exported = export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle.zip", cpu, options)
    operators = {
        n.op_type
        for n in onnx.load_from_string(_read(tmp_path / "bundle.zip", "fp32/render.onnx")).graph.node
    }  # fmt: skip
    assert "BatchNormalization" not in operators and ("ConvTranspose" in operators) == (name == "mocogan")
    assert exported.manifest.stages["motion"].noises
    assert play(tmp_path / "bundle.zip").shape == (8, 64, 64, 3)


def _read(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_checkpoint_and_seed_give_the_same_bytes(make_checkpoint, cpu, tmp_path):
    folder = make_checkpoint()
    for name in ("one", "two"):
        export_checkpoint(folder, tmp_path / name, cpu, UNTIMED)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    export_checkpoint(folder, tmp_path / "three", cpu, ExportOptions(measure=False, seed=1))
    one, three = contents(tmp_path / "one"), contents(tmp_path / "three")
    assert {n for n in one if one[n] != three[n]} == {"golden.npz", "manifest.json", "report.json"}


def test_manifest_says_what_a_run_of_each_graph_costs_and_precision_changes_bytes_and_not_work(
    make_checkpoint, cpu, tmp_path
):
    variants = export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, UNTIMED).manifest.variants
    for stage in STAGES:
        full, half = variants["fp32"][stage], variants["fp16"][stage]
        assert full.macs == half.macs > 0 and full.launches >= 1 and half.launches >= 1
        assert full.weight_bytes > 0 and full.activation_bytes > 0
    full, half = variants["fp32"]["render"], variants["fp16"]["render"]
    assert half.weight_bytes < 0.75 * full.weight_bytes and half.activation_bytes < full.activation_bytes
    # motion computes in float32 in both; its stored halves are read as they are computed
    assert variants["fp16"]["motion"].weight_bytes == variants["fp32"]["motion"].weight_bytes


def test_timing_changes_no_file_but_the_report_and_the_form_of_doublings(make_checkpoint, cpu, tmp_path, monkeypatch):
    folder = make_checkpoint()
    monkeypatch.setattr(latency, "doubling_forms", lambda model, _: {"built": model})
    export_checkpoint(folder, tmp_path / "one", cpu, ExportOptions(ship="all"))
    export_checkpoint(folder, tmp_path / "two", cpu, UNTIMED)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {n for n in one if one[n] != two[n]} <= {"manifest.json", "report.json"}


def test_fp16_bundle_is_half_the_size_and_keeps_the_checkpoints_weights(make_checkpoint, cpu, tmp_path):
    draw = StageConfig("upsample", {"channels": [48, 32], "norm": False})
    move = StageConfig("recurrent", {"hidden": 64})
    exported = export_checkpoint(make_checkpoint(motion=move, render=draw), tmp_path / "bundle", cpu, UNTIMED)
    size = {v: sum(exported.report["bytes"][v][s] for s in ("motion", "render")) for v in ("fp32", "fp16")}
    assert size["fp16"] < 0.55 * size["fp32"]
    with Bundle.open(tmp_path / "bundle") as bundle:
        stored = onnx.load_from_string(bundle.graph("fp16", "motion")).graph.initializer
    saved = export.load_checkpoint(tmp_path / "checkpoint").motion.state_dict()["cells.0.weight_hh"].numpy()
    halves = [
        numpy_helper.to_array(t).astype(np.float32) for t in stored if tuple(t.dims) in (saved.shape, saved.T.shape)
    ]
    assert any(np.array_equal(h, saved) or np.array_equal(h.T, saved) for h in halves)


def test_graph_that_is_wrong_writes_nothing(make_checkpoint, cpu, tmp_path, monkeypatch):
    real = float32.stage_to_onnx

    def corrupted(module, spec, opset):
        model = real(module, spec, opset)
        if spec.stage == "motion":
            weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        return model

    monkeypatch.setattr(float32, "stage_to_onnx", corrupted)
    with pytest.raises(AccuracyError, match="fp32 motion: .* differs from torch by") as caught:
        export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, UNTIMED)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "bundle").exists()


def test_accuracy_counts_nan_and_whole_levels():
    nan = compare([(np.array([1.0, np.nan]), np.array([1.0, 2.0]))])
    assert nan.max_rel == float("inf")
    assert compare([(np.array([1.0, 2.5]), np.array([1.0, -2.0]))]).max_rel == pytest.approx(4.5 / 2)
    with pytest.raises(AccuracyError):
        check_accuracy("fp16", {"text": StageDifference(1.0, nan.max_rel, {"condition": nan})})
    far = StageDifference(0.0, 0.0, {"levels": Difference(0, 0), "frame": Difference(2, 2 / 255)})
    with pytest.raises(AccuracyError, match="fp32 render: frame"):
        check_accuracy("fp32", {"render": far})
    check_accuracy("fp16", {"render": far})


KILLED = """
import sys
from t2v_edge.util import files
from t2v_edge.device.profile import load_profile
from t2v_export.exporter.export import ExportOptions, export_checkpoint
def stall(*_):
    sys.stdout.write("writing"); sys.stdout.flush()
    import time; time.sleep(60)
files._swap = stall
export_checkpoint(sys.argv[1], sys.argv[2], load_profile("cpu"), ExportOptions(measure=False, seed=5))
"""


def test_killed_export_leaves_the_previous_bundle_whole(make_checkpoint, cpu, tmp_path):
    folder = make_checkpoint()
    export_checkpoint(folder, tmp_path / "out" / "bundle", cpu, UNTIMED)
    before = contents(tmp_path / "out" / "bundle")
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out" / "bundle")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=_environment())
    assert process.stdout is not None and process.stdout.read(7) == b"writing"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert contents(tmp_path / "out" / "bundle") == before
    assert len(list((tmp_path / "out").iterdir())) == 2  # the dead run's temporary lies beside it
    with Bundle.open(tmp_path / "out" / "bundle") as bundle:
        verify_bundle(bundle)
    export_checkpoint(folder, tmp_path / "out" / "bundle", cpu, ExportOptions(measure=False, seed=5))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["bundle"]
    assert contents(tmp_path / "out" / "bundle") != before


def run_command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


def test_command_prints_differences_as_json(make_checkpoint, tmp_path, capsys):
    assert run_command(make_checkpoint(), "--device", "cpu", "-o", tmp_path / "b", "--json", "--ship", "all") == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert printed.err == ""  # no progress bar where nobody looks
    for variant, tolerance in (("fp32", 1e-4), ("fp16", 1e-2)):
        for stage in STAGES:
            entry = data["variants"][variant][stage]
            assert 0 <= entry["max_rel"] <= tolerance and entry["bytes"] > 0 and entry["latency_ms"] > 0
    assert run_command(make_checkpoint(), "-o", tmp_path / "b", "--no-timing", "--variants", "fp32") == 0
    assert "fp16" not in capsys.readouterr().out


def test_command_takes_captions_from_a_file(make_checkpoint, tmp_path):
    lines = [f"a person is walking{' 一个人' * i}" for i in range(12)]
    (tmp_path / "captions.txt").write_text("\n\n".join(lines), "utf-8")
    run_command(make_checkpoint(), "-o", tmp_path / "b", "--no-timing", "--captions", tmp_path / "captions.txt")
    with Bundle.open(tmp_path / "b") as bundle:
        assert Golden.read(bundle).arrays["captions"].tolist() == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "fp8"], "variant 'fp8' is unknown; choose from fp32, fp16"),
        (["--variants", "fp32,,fp16"], "empty name"),
        (["--seed", "-1"], "seed -1"),
        (["--device", "toaster"], "no device profile"),
        (["--captions", "few.txt"], "cannot be read"),
    ],
)
def test_wrong_use_is_a_typed_error(make_checkpoint, tmp_path, arguments, message):
    with pytest.raises(T2VError, match=message):
        run_command(make_checkpoint(), "-o", tmp_path / "b", *arguments)


def test_too_few_captions_are_refused(make_checkpoint, tmp_path):
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="holds 2 captions; give 12"):
        run_command(make_checkpoint(), "-o", tmp_path / "b", "--captions", tmp_path / "few.txt")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = capsys.readouterr().out
    assert "1e-4 (fp32)" in shown and "examples:" in shown and "--allow-code" in shown


@pytest.mark.parametrize(
    "ms, form, operators",
    [
        ({"built": (2.0, 2.0), "transposed": (1.0, 1.0), "phases": (1.1, 1.0)}, "transposed", {"ConvTranspose"}),
        ({"built": (2.0, 2.0), "transposed": (1.0, 1.0), "phases": (0.6, 1.1)}, "phases", {"Slice"}),
        ({"built": (2.0, 2.0), "transposed": (1.9, 2.0), "phases": (2.0, 1.96)}, "built", {"Resize"}),
    ],
)
def test_doublings_take_the_form_that_all_engines_together_run_fastest(
    make_checkpoint, cpu, tmp_path, monkeypatch, ms, form, operators
):
    measured = latency.measure_latencies

    def timed(graphs, spec, rollout):
        if "built" not in graphs:
            return measured(graphs, spec, rollout)
        return {n: {e: GraphLatency(x, x, 20) for e, x in zip(("onnxruntime", "openvino"), ms[n])} for n in graphs}

    monkeypatch.setattr(latency, "measure_latencies", timed)
    exported = export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, ExportOptions(variants=("fp32",)))
    assert exported.report["upsampling"]["form"] == form
    assert exported.report["upsampling"]["median_ms"]["phases"]["openvino"] == ms["phases"][1]
    with Bundle.open(tmp_path / "bundle") as bundle:
        found = {n.op_type for n in onnx.load_from_string(bundle.graph("fp32", "render")).graph.node}
    assert found & {"ConvTranspose", "Resize", "Slice"} == operators
