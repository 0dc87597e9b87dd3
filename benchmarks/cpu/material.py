"""What the contenders run, made once before anything is timed: our bundle, the plain graphs, each peer's graphs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from t2v_calibration.calibration_set import CalibrationSet
from t2v_edge.device.profile import load_profile
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.spec import StageSpec
from t2v_edge.util.files import atomic_folder
from t2v_edge.util.machine import versions
from t2v_edge.util.targets import TargetKind
from t2v_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.graph.from_torch import stage_to_onnx
from t2v_export.quantize.stage import calibrate
from t2v_export.recipe import Quantize, load_recipe

QUANTIZED = ("text", "render")
"""The stages given to the peers' quantizers. The motion step stays FP32, as in our own recipe: at batch 1 INT8 makes it
slower, so this is to the peers' advantage."""

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "t2v-edge")
PROBES = 16
Graphs = Mapping[str, onnx.ModelProto]


MATERIAL = TargetKind("the material", lambda path: "it is already there", folder=True)


def prepare(
    checkpoint: Path,
    work: Path,
    samples: int,
    seed: int,
    bundle: Path | None = None,
    advance: Callable[[str], object] = lambda doing: None,
) -> Path:
    """The folder in `work` with a checkpoint's material; made where it is not there yet.

        bundle/            exported with recipe ``fast`` (or a copy of the given `bundle`)
        plain/             the FP32 graphs as exported
        ort-static/, nncf-onnx/, nncf-openvino/      peers' INT8 of `QUANTIZED`
        probe.npz          render inputs and the FP32 graph's frames
        failed.json        folder -> why a peer's tool could not make it

    `samples`: of each stage, the calibration set that every quantizer gets. `advance` is called with the name of the
    next step. Raises `T2VError` where the checkpoint or our own export fails; a peer's failure is noted and skipped.
    """
    loaded = load_checkpoint(checkpoint)
    key = json.dumps([loaded.sha256, versions(*PACKAGES), samples, seed, str(bundle)])
    folder = work / f"{loaded.config.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    with atomic_folder(folder, MATERIAL) as made:
        advance("our export")
        _our_bundle(checkpoint, bundle, made / "bundle", seed)
        graphs = {s: stage_to_onnx(module, loaded.specs[s]) for s, module in loaded.modules.items()}
        (made / "plain").mkdir()
        for stage, graph in graphs.items():
            onnx.save(graph, made / "plain" / f"{stage}.onnx")
        advance("calibration set")
        options = Quantize(text_samples=samples, motion_samples=samples, render_samples=samples)
        calibration = _calibration(loaded, graphs, options, seed)
        probes = _calibration(
            loaded, graphs, Quantize(text_samples=16, motion_samples=64, render_samples=PROBES), seed + 1
        )
        _write_probe(made / "probe.npz", graphs["render"], loaded.specs["render"], probes)
        failed: dict[str, str] = {}
        for name, quantizer in QUANTIZERS.items():
            advance(name)
            try:
                (made / name).mkdir()
                for stage in QUANTIZED:
                    quantizer(made / "plain" / f"{stage}.onnx", made / name / stage, calibration.samples[stage])
            except Exception as error:  # noqa: BLE001 a peer's tool may raise anything, and the others go on
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        (made / "failed.json").write_text(json.dumps(failed), "utf-8")
    return folder


def failures(material: Path) -> dict[str, str]:
    """Folder of a peer's graphs -> why it is not there."""
    found: dict[str, str] = json.loads((material / "failed.json").read_text("utf-8"))
    return found


def _our_bundle(checkpoint: Path, bundle: Path | None, target: Path, seed: int) -> None:
    if bundle is not None:
        shutil.copytree(bundle, target)
        return
    options = ExportOptions(recipe=load_recipe("fast"), seed=seed, progress=True)
    export_checkpoint(checkpoint, target, load_profile("cpu"), options)


def _calibration(loaded: Checkpoint, graphs: Graphs, options: Quantize, seed: int) -> CalibrationSet:
    return calibrate(graphs, loaded.specs, caption_tokenizer(loaded), loaded.config.blend_steps, options, seed)[0]


def _write_probe(path: Path, graph: onnx.ModelProto, spec: StageSpec, calibration: CalibrationSet) -> None:
    feeds = calibration.samples["render"]
    with open_engine("onnxruntime", graph.SerializeToString(), spec, EngineOptions()) as engine:
        frames = [engine.run(sample)["frame"] for sample in feeds]
    stacked = {name: np.stack([sample[name] for sample in feeds]) for name in feeds[0]}
    np.savez(path, **{f"in.{name}": array for name, array in stacked.items()}, frames=np.stack(frames))


def _ort_static(plain: Path, target: Path, samples: Any) -> None:
    """onnxruntime.quantization: the recommended pre-processing, then quantize_static (Q/DQ), with defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(samples)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(plain), str(prepared))
    quantize_static(str(prepared), str(target.with_suffix(".onnx")), Reader())
    prepared.unlink()


def _nncf_onnx(plain: Path, target: Path, samples: Any) -> None:
    """nncf.quantize on the ONNX graph, with defaults."""
    import nncf

    made = nncf.quantize(onnx.load(plain), nncf.Dataset(list(samples)))
    onnx.save(made, target.with_suffix(".onnx"))


def _nncf_openvino(plain: Path, target: Path, samples: Any) -> None:
    """nncf.quantize on OpenVINO's own model, with defaults, as OpenVINO's documentation shows."""
    import nncf
    import openvino

    made = nncf.quantize(openvino.Core().read_model(str(plain)), nncf.Dataset(list(samples)))
    openvino.save_model(made, str(target.with_suffix(".xml")))


QUANTIZERS: Mapping[str, Callable[[Path, Path, Any], None]] = {
    "ort-static": _ort_static,
    "nncf-onnx": _nncf_onnx,
    "nncf-openvino": _nncf_openvino,
}
