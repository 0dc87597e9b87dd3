"""The doctor with a bundle: golden vectors on every engine, and a command that says it all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from t2v_edge import cli
from t2v_edge.bundle.bundle import Bundle, write_bundle
from t2v_edge.device.system import System
from t2v_edge.doctor.diagnosis import diagnose
from t2v_edge.doctor.finding import FAIL, OK, WARN
from t2v_edge.doctor.trial import EngineOpener, installed_engines
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import BUILT, available_engines, open_engine
from t2v_edge.errors import EngineError
from t2v_edge.spec import STAGES
from tests.t2v_edge.fake_gpu import FakeCuda, install
from tests.t2v_edge.golden_samples import golden_arrays, pack
from tests.t2v_edge.system_samples import in_venv, read_system


@pytest.fixture
def sound(tiny):
    """A tiny bundle of one variant whose golden vectors are its own."""
    tiny.files["golden.npz"] = pack(golden_arrays(tiny))
    for entry in tiny.variants.pop("fp16").values():
        del tiny.files[entry.file]
    return tiny


def onnxruntime(bundle, variant, stage):
    return open_engine("onnxruntime", bundle.graph(variant, stage), bundle.manifest.stages[stage], EngineOptions(1))


class Wrong:
    """ONNX Runtime, but for the outputs of a stage, which are `change`d."""

    def __init__(self, stage, change):
        self._stage, self._change = stage, change

    def __call__(self, bundle, variant, stage):
        engine = onnxruntime(bundle, variant, stage)
        if stage == self._stage:
            run, first = engine.run, bundle.manifest.stages[stage].results[0].name
            engine.run = lambda feeds: {**(made := run(feeds)), first: self._change(made[first])}
        return engine


def broken(bundle, variant, stage):
    raise EngineError(f"no {stage} engine has been built; t2v-edge build BUNDLE")


def golden_findings(diagnosis):
    return [finding for finding in diagnosis.findings if finding.code == "golden"]


def test_a_sound_bundle_is_proved_on_every_engine_that_is_installed(sound, tmp_path):
    told = []
    diagnosis = diagnose(read_system("cpu-x86"), sound.write(tmp_path / "b"), advance=lambda *at: told.append(at))
    assert diagnosis.can_run and diagnosis.bundle == "tiny"
    ran = {(p.engine, p.variant, p.stage): p for p in diagnosis.trials}
    # of TensorRT's engines none can work on this machine, whatever is installed
    assert (
        set(ran)
        == {(e, "fp32", s) for e in available_engines() for s in STAGES}
        == set((e, "fp32", s) for e in installed_engines() if e not in BUILT for s in STAGES)
    )
    assert all(p.right and p.default and p.difference.max_rel < 1e-3 for p in ran.values() if p.stage != "render")
    assert told == [(i + 1, len(ran)) for i in range(len(ran))]
    by_code = {finding.code: finding.level for finding in diagnosis.findings}
    assert by_code["bundle"] == by_code["tokenizer"] == by_code["golden"] == by_code["memory"] == OK


def test_an_engine_that_computes_wrongly_is_named(sound, tmp_path):
    wrong = Wrong("motion", lambda moved: moved + np.float32(0.1))
    engines = {"onnxruntime": EngineOpener(onnxruntime), "openvino": EngineOpener(wrong)}
    diagnosis = diagnose(read_system("cpu-x86"), sound.write(tmp_path / "b"), engines=engines)
    (finding,) = golden_findings(diagnosis)
    assert not diagnosis.can_run and finding.level == FAIL
    assert finding.what.startswith("openvino computes fp32 motion wrongly: ") and "allowed is at most" in finding.what
    assert "--engine onnxruntime" in finding.remedy
    assert [p.stage for p in diagnosis.trials if not p.right] == ["motion"]


def test_a_nan_is_wrong_and_still_json(sound, tmp_path):
    engines = {"onnxruntime": EngineOpener(Wrong("text", lambda made: made * np.float32(np.nan)))}
    diagnosis = diagnose(read_system("cpu-x86"), sound.write(tmp_path / "b"), engines=engines)
    assert not diagnosis.can_run and "NaN or infinite" in golden_findings(diagnosis)[0].what
    assert "no engine here plays text correctly in its default variant" in golden_findings(diagnosis)[1].what
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_a_variant_that_is_wrong_and_no_default_only_warns(tiny, tmp_path):
    tiny.files["golden.npz"] = pack(golden_arrays(tiny))  # "fp16" has other weights
    diagnosis = diagnose(
        read_system("cpu-x86"), tiny.write(tmp_path / "b"), engines={"onnxruntime": EngineOpener(onnxruntime)}
    )
    assert diagnosis.can_run
    assert {f.what.split(" wrongly")[0] for f in golden_findings(diagnosis)} == {
        f"onnxruntime computes fp16 {stage}" for stage in STAGES
    }
    assert {f.level for f in golden_findings(diagnosis)} == {WARN}


def test_an_engine_that_has_nothing_built_is_told_and_the_others_count(sound, tmp_path):
    engines = {"tensorrt": EngineOpener(broken), "onnxruntime": EngineOpener(onnxruntime)}
    diagnosis = diagnose(read_system("jetpack-6.2"), sound.write(tmp_path / "b"), engines=engines)
    (finding,) = golden_findings(diagnosis)
    assert diagnosis.can_run and finding.level == WARN and finding.what.startswith("tensorrt runs no graph: no ")
    assert finding.remedy == "t2v-edge build BUNDLE"
    alone = diagnose(
        read_system("jetpack-6.2"), sound.write(tmp_path / "b"), engines={"tensorrt": EngineOpener(broken)}
    )
    assert not alone.can_run


def test_tensorrt_is_not_asked_for_unsigned_int8(sound, tmp_path):
    sound.variants["int8-u8"] = {
        "text": replace(sound.variants["fp32"]["text"], file="int8-u8/text.onnx", precision="int8-u8")
    }
    sound.files["int8-u8/text.onnx"] = sound.files["fp32/text.onnx"]
    manifest = replace(sound.manifest, quality={"int8-u8": {"text": {"max_rel": 0.01}}})
    write_bundle(tmp_path / "b", manifest, sound.files)
    engines = {"tensorrt": EngineOpener(onnxruntime), "onnxruntime": EngineOpener(onnxruntime)}
    diagnosis = diagnose(read_system("jetpack-6.2"), tmp_path / "b", engines=engines)
    ran = {(p.engine, p.variant) for p in diagnosis.trials}
    assert ("onnxruntime", "int8-u8") in ran and ("tensorrt", "int8-u8") not in ran and ("tensorrt", "fp32") in ran
    assert diagnosis.can_run


def test_another_tokenizer_is_noticed(sound, tmp_path):
    arrays = golden_arrays(sound)
    arrays["captions"] = np.array(["a person is running", *arrays["captions"][1:]])
    sound.files["golden.npz"] = pack(arrays)
    engines = {"onnxruntime": EngineOpener(onnxruntime)}
    diagnosis = diagnose(read_system("cpu-x86"), sound.write(tmp_path / "b"), engines=engines)
    finding = next(f for f in diagnosis.findings if f.code == "tokenizer")
    assert finding.level == FAIL and "a person is running" in finding.what and not diagnosis.can_run


def test_tensorrt_is_tried_as_it_was_built_and_nothing_is_built(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))
    install(monkeypatch, FakeCuda())
    from t2v_edge.engine.tensorrt.build import Builder, BuildOptions

    engines = {name: opened for name, opened in installed_engines().items() if name in ("tensorrt", "onnxruntime")}
    assert set(engines) == {"tensorrt", "onnxruntime"}
    path = sound.write(tmp_path / "b")
    before = diagnose(read_system("jetpack-6.2"), path, engines=engines)
    (finding,) = golden_findings(before)
    assert "tensorrt runs no graph: no engine of fp32 text has been built" in finding.what
    assert finding.remedy == f"t2v-edge build {path}" and before.can_run
    with Bundle.open(path) as bundle:
        Builder(bundle, BuildOptions()).build()
    after = diagnose(read_system("jetpack-6.2"), path, engines=engines)
    assert [(t.right, t.default) for t in after.trials if t.engine == "tensorrt"] == [(True, True)] * 3
    assert [f.level for f in golden_findings(after)] == [OK]


def test_an_engine_that_the_build_refused_is_no_failure(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))
    install(monkeypatch, FakeCuda())
    from t2v_edge.engine.tensorrt.build import Builder, BuildOptions

    tiny.files["golden.npz"] = pack(golden_arrays(tiny))  # "fp16" has other weights
    with Bundle.open(tiny.write(tmp_path / "b")) as bundle:
        Builder(bundle, BuildOptions()).build()
    engines = {"tensorrt": installed_engines()["tensorrt"]}
    diagnosis = diagnose(read_system("jetpack-6.2"), tmp_path / "b", engines=engines)
    assert diagnosis.can_run and {t.variant for t in diagnosis.trials if t.default} == {"fp32"}
    assert {f.level for f in golden_findings(diagnosis)} == {WARN}
    assert all("tensorrt computes fp16" in f.what and "--rebuild" in f.remedy for f in golden_findings(diagnosis))


def test_a_damaged_bundle_is_a_finding_with_its_remedy(sound, tmp_path):
    path = sound.write(tmp_path / "b")
    (path / "fp32/text.onnx").write_bytes(b"x" * (path / "fp32/text.onnx").stat().st_size)
    diagnosis = diagnose(read_system("cpu-x86"), path)
    finding = next(f for f in diagnosis.findings if f.code == "bundle")
    assert finding.level == FAIL and "is damaged or altered" in finding.what
    assert finding.remedy == "copy or export the bundle again" and not diagnosis.can_run


def test_a_graph_that_is_not_what_the_manifest_says_is_found_without_any_engine(sound, tmp_path):
    path = sound.write(tmp_path / "b")
    graph = sound.files["fp32/render.onnx"]
    (path / "fp32/text.onnx").write_bytes(graph)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["fp32/text.onnx"] = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    diagnosis = diagnose(read_system("cpu-x86"), path, engines={})
    finding = next(f for f in diagnosis.findings if f.code == "bundle")
    assert finding.level == FAIL and "fp32/text.onnx: the graph takes" in finding.what


def test_a_bundle_without_golden_vectors_cannot_be_proved(sound, tmp_path):
    del sound.files["golden.npz"]
    write_bundle(tmp_path / "b", replace(sound.manifest, golden=None), sound.files)
    diagnosis = diagnose(read_system("cpu-x86"), tmp_path / "b")
    assert golden_findings(diagnosis)[0].level == WARN and diagnosis.trials == ()


@pytest.mark.parametrize(
    "name, changes, code, exit_code",
    [
        ("jetpack-6.2", {}, "power-mode", 0),
        ("jetpack-6.2", {"tensorrt": in_venv("11.4.1", "3.10")}, "tensorrt-wheel", 1),
        ("jetpack-6.2", {"tensorrt": None, "system_site": False}, "venv", 0),
        ("jetpack-5.1-orin", {"version": (3, 8, 10)}, "python", 1),
        ("jetpack-5.1-xavier", {}, "platform", 0),
        ("jetpack-7.0", {}, "power-mode", 0),
        ("jetpack-7.2", {}, "power-mode", 0),
        ("jetpack-6.0", {"packages": {}, "tensorrt": None}, "engines", 1),
    ],
)
def test_the_command_gives_the_verdict_as_json(name, changes, code, exit_code, capsys, monkeypatch):
    system = read_system(name, **changes)
    monkeypatch.setattr(System, "read", classmethod(lambda cls: system))
    assert cli.main(["doctor", "--json"]) == exit_code
    said = json.loads(capsys.readouterr().out)
    finding = next(f for f in said["findings"] if f["code"] == code)
    assert said["can_run"] is (exit_code == 0) and finding["level"] != OK and finding["remedy"]
    assert said["system"]["jetpack"] == system.jetpack and said["system"]["python"]["version"] == list(
        system.python.version
    )


def test_the_command_says_it_in_words_with_a_remedy_below_each(sound, tmp_path, capsys, monkeypatch):
    system = replace(read_system("cpu-x86"), available_bytes=100_000_000)
    monkeypatch.setattr(System, "read", classmethod(lambda cls: system))
    path = sound.write(tmp_path / "b")
    assert cli.main(["doctor", str(path)]) == 1
    out = capsys.readouterr().out
    assert "fail  memory" in out and "-> stop other programs" in out and "this machine and tiny: not ready" in out
    assert "*onnxruntime" in out and "right: " in out


def test_the_command_holds_the_machine_to_a_device(capsys, monkeypatch):
    system = read_system("cpu-x86")
    monkeypatch.setattr(System, "read", classmethod(lambda cls: system))
    assert cli.main(["doctor", "--device", "jetson-orin-nano-8gb"]) == 1
    assert "this machine is not" in capsys.readouterr().out
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    assert cli.main(["doctor", "--device", "jetson-orin-nan"]) == 1 and "did you mean" in capsys.readouterr().err


def test_this_very_machine_is_diagnosed(sound, tmp_path, capsys):
    assert cli.main(["doctor", str(sound.write(tmp_path / "b")), "--json"]) in (0, 1)
    said = json.loads(capsys.readouterr().out)
    assert said["engines"] and all(trial["right"] for trial in said["golden"])
