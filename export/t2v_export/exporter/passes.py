"""The passes from a checkpoint to graphs and measurements: each is kept by what it is made from and found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import geometric_mean
from typing import Any

import onnx

from t2v_calibration.captions import load_captions
from t2v_calibration.ranges import WEIGHT_LEVELS
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.engine.registry import available_engines
from t2v_edge.errors import SpecError
from t2v_edge.spec import STAGES, StageSpec
from t2v_edge.util.machine import machine, versions
from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.compress.grid import store_grid
from t2v_export.exporter.choose import MARGIN
from t2v_export.exporter.float16_search import make_half
from t2v_export.exporter.pack import (
    pack_calibration,
    pack_json,
    pack_observations,
    pack_rollouts,
    unpack_calibration,
    unpack_observations,
    unpack_rollouts,
)
from t2v_export.exporter.targets import HALF_INT8, takes_half_int8, tensorrt_lines
from t2v_export.exporter.work import Advance, Files, PassRunner
from t2v_export.graph.batch import check_batch_free, free_batch
from t2v_export.graph.from_torch import stage_to_onnx
from t2v_export.graph.upsampling import BUILT, doubling_forms, int8_form
from t2v_export.precision.float_weights import float_weights
from t2v_export.precision.int8_float16 import compute_half_int8
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import QuantizePlan, make_plan, observed_tensors
from t2v_export.quantize.sensitivity import (
    MAX_LAYERS,
    Sensitivity,
    SensitivityMetric,
    measure_sensitivity,
    spared_layers,
)
from t2v_export.quantize.smooth import smooth
from t2v_export.quantize.stage import calibrate, measure_int8, quantize_stage
from t2v_export.recipe import Quantize
from t2v_export.verify.difference import TOLERANCES, StageDifference, check_accuracy, compare_stage, compare_variant
from t2v_export.verify.latency import GraphLatency, measure_latencies
from t2v_export.verify.reference import ReferenceRollout, play_references


@dataclass
class PassResults:
    """What the passes have made so far, by variant and stage: graphs, their differences from torch, layers that stay in
    float32, and why a graph is not there. `sensitivity`: by stage, what single layers lose, as JSON. `upsampling`: the
    form of the renderer's doublings, and the milliseconds of each by engine. `exact`: variants and stages that compute
    the very same as fp32. `one_at_a_time`: by variant, why its renderer cannot be given several frames at once.
    """

    graphs: dict[str, dict[str, onnx.ModelProto]] = field(default_factory=dict)
    differences: dict[str, dict[str, StageDifference]] = field(default_factory=dict)
    kept: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    sensitivity: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    upsampling: dict[str, Any] | None = None
    exact: set[tuple[str, str]] = field(default_factory=set)
    calibration_sha256: str | None = None
    one_at_a_time: dict[str, str] = field(default_factory=dict)

    def add(
        self, variant: str, stage: str, graph: onnx.ModelProto, difference: StageDifference, kept: Sequence[str]
    ) -> None:
        self.graphs.setdefault(variant, {})[stage] = graph
        self.differences.setdefault(variant, {})[stage] = difference
        if kept:
            self.kept.setdefault(variant, {})[stage] = tuple(kept)


class GraphPasses:
    """The passes on one checkpoint. Each reads what those before it have left in `made`."""

    def __init__(
        self, work: PassRunner, checkpoint: Checkpoint, tokenizer: CaptionTokenizer, opset: int, seed: int
    ) -> None:
        self.work, self.checkpoint, self.tokenizer, self.opset, self.seed = work, checkpoint, tokenizer, opset, seed
        self.specs = checkpoint.specs
        self.made = PassResults()
        self.rollouts: tuple[ReferenceRollout, ...] = ()
        self._hashes: dict[str, str] = {}

    @staticmethod
    def count(half: bool, quantize: Quantize | None, measure: bool, profile: DeviceProfile) -> int:
        """How many passes an export with these choices has."""
        stages = len(STAGES)
        calibrated = 0
        if quantize:
            typed = half and takes_half_int8(profile)
            calibrated = 1 + (4 + bool(quantize.smooth) + typed) * len(quantize.stages)
            calibrated += 0 if tensorrt_lines(profile) else stages - len(quantize.stages)
        return 4 + (measure and profile.kind == "cpu") + stages * (half + measure) + calibrated

    def float_graphs(self) -> None:
        def make(advance: Advance) -> Files:
            files = {}
            for stage, module in self.checkpoint.modules.items():
                made = stage_to_onnx(module, self.specs[stage], self.opset)
                files[stage] = _bytes(_freed(made, self.specs[stage]) if stage == "render" else made)
                advance()
            return files

        files = self.work.do("float32 graphs", len(STAGES), make, opset=self.opset)
        self.made.graphs["fp32"] = {stage: onnx.load_from_string(files[stage]) for stage in STAGES}
        self._hashes = {stage: hashlib.sha256(data).hexdigest() for stage, data in files.items()}

    def references(self, captions: Sequence[str], measure: bool = False) -> None:
        """What torch makes of the captions, and how far the float32 graphs are from it; raises `AccuracyError`.

        `measure`: try the renderer with transposed convolutions for its doublings; take it where it is faster.
        """

        def make(advance: Advance) -> Files:
            return pack_rollouts(play_references(self.checkpoint, self.tokenizer, captions, self.seed, advance))

        files = self.work.do("torch", len(captions), make, captions=list(captions), seed=self.seed)
        self.rollouts = unpack_rollouts(files, self.specs, self.tokenizer, captions, self.seed)
        self._hashes["rollouts"] = hashlib.sha256(files["rollouts.npz"]).hexdigest()

        if measure:
            self._upsampling()

        def compare(advance: Advance) -> Files:
            found = compare_variant(self.made.graphs["fp32"], self.specs, self.rollouts)
            check_accuracy("fp32", found)
            return {"differences.json": pack_json({stage: d.to_json() for stage, d in found.items()})}

        files = self.work.do("float32 verified", 1, compare, **self._hashes)
        described = json.loads(files["differences.json"])
        self.made.differences["fp32"] = {s: StageDifference.from_json(described[s]) for s in STAGES}

    def _upsampling(self) -> None:
        """Doublings of the render graph in the form that is fastest here, the mean over all engines counting."""
        plain, spec = self.made.graphs["fp32"]["render"], self.specs["render"]
        forms = doubling_forms(plain, spec)
        if len(forms) == 1:
            return

        def make(advance: Advance) -> Files:
            times = measure_latencies(forms, spec, self.rollouts[0])
            found = {form: {e: round(t.median_ms, 4) for e, t in of.items()} for form, of in times.items()}
            return {"ms.json": pack_json(found)}

        here = {"engines": versions(*available_engines()), "here": machine()}
        files = self.work.do("upsampling", 1, make, forms=sorted(forms), **here, **self._hashes)
        median_ms = json.loads(files["ms.json"])
        engines = set.intersection(*(set(found) for found in median_ms.values()))
        mean_ms = {form: geometric_mean(found[e] for e in engines) for form, found in median_ms.items() if engines}
        best = min(mean_ms, key=lambda form: mean_ms[form] * (MARGIN if form == BUILT else 1.0), default=BUILT)
        self.made.upsampling = {"form": best, "median_ms": median_ms}
        self.made.graphs["fp32"]["render"] = forms[best]
        self._hashes["render"] = hashlib.sha256(_bytes(forms[best])).hexdigest()

    def half_graphs(self) -> None:
        """The float16 variant; raises `AccuracyError` where a stage has none."""
        for stage in STAGES:
            model, spec = self.made.graphs["fp32"][stage], self.specs[stage]

            def make(advance: Advance, model: onnx.ModelProto = model, spec: StageSpec = spec) -> Files:
                found = make_half(model, spec, self.rollouts, TOLERANCES["fp16"])
                check_accuracy("fp16", {spec.stage: found.difference}, {spec.stage: found.kept})
                described = {"kept": found.kept, "difference": found.difference.to_json()}
                return {"graph.onnx": _bytes(found.graph), "made.json": pack_json(described)}

            files = self.work.do(f"float16 {stage}", 1, make, **self._inputs(stage))
            described = json.loads(files["made.json"])
            difference = StageDifference.from_json(described["difference"])
            self.made.add("fp16", stage, onnx.load_from_string(files["graph.onnx"]), difference, described["kept"])

    def int8_graphs(self, options: Quantize, profile: DeviceProfile) -> None:
        """Both INT8 variants of the recipe's stages, and what their layers lose; weights of the others in 8 bits, where
        they are on a grid, for engines that take such constants.
        """
        blend_steps, fp32 = self.checkpoint.config.blend_steps, dict(self.made.graphs["fp32"])
        if "render" in options.stages:
            fp32["render"] = int8_form(fp32["render"], self.specs["render"], profile.kind == "cpu")
        for_tensorrt = bool(tensorrt_lines(profile))
        if for_tensorrt:
            # those that are no phases: 8.6 does not build them in INT8
            transposed = [n.name for stage in fp32.values() for n in stage.graph.node if n.op_type == "ConvTranspose"]
            options = replace(options, keep=(*options.keep, *transposed))

        def play(advance: Advance) -> Files:
            given, held = calibrate(fp32, self.specs, self.tokenizer, blend_steps, options, self.seed)
            return pack_calibration({"given": given, "held": held})

        said = [load_captions(name) for name in options.captions]
        sizes = [options.text_samples, options.motion_samples, options.render_samples, options.steps]
        files = self.work.do("calibration", 1, play, captions=said, sizes=sizes, seed=self.seed, **self._hashes)
        sets = unpack_calibration(files)
        self.made.calibration_sha256 = sets["given"].sha256
        for stage in (s for s in STAGES if s in options.stages):
            plan = make_plan(fp32[stage], self.specs[stage], options)
            if plan.layers:
                given, held = (sets[name].samples[stage] for name in ("given", "held"))
                self._int8_stage(fp32[stage], self.specs[stage], plan, given, held, options, profile.opset_cap)
        for stage in (s for s in STAGES if s not in options.stages and not for_tensorrt):
            self._stored_stage(stage)

    def half_int8_graphs(self) -> None:
        """The signed INT8 graphs with float16 types; for motion none, whose state would gather rounding. A stage with
        an operator that opset 19 may have changed has none.
        """
        for stage, model in self.made.graphs.get("int8", {}).items():
            if stage == "motion":
                continue
            spec, quantized = self.specs[stage], self.made.kept.get("int8", {}).get(stage, ())
            keep = [name for name in self.made.kept.get("fp16", {}).get(stage, ()) if name in quantized]

            def make(
                advance: Advance, model: onnx.ModelProto = model, spec: StageSpec = spec, keep: Sequence[str] = keep
            ) -> Files:
                try:
                    graph = compute_half_int8(model, spec, keep)
                except SpecError as error:
                    return {"made.json": pack_json(str(error))}
                found = measure_int8(graph, spec, self.rollouts, HALF_INT8)
                return {"graph.onnx": _bytes(graph), "made.json": pack_json(found.to_json())}

            inputs = {**self._inputs(stage), "int8": _bytes(model), "keep": keep}
            files = self.work.do(f"INT8 and float16 {stage}", 1, make, **inputs)
            described = json.loads(files["made.json"])
            if "graph.onnx" in files:
                difference = StageDifference.from_json(described)
                self.made.add(HALF_INT8, stage, onnx.load_from_string(files["graph.onnx"]), difference, keep)
            else:
                self.made.refused.setdefault(HALF_INT8, {})[stage] = described

    def float_weight_graphs(self, stages: Sequence[str]) -> None:
        """Weights of these stages' `int8` graphs as float32 behind Q and DQ: the same numbers, not measured."""
        of = self.made.graphs.get("int8", {})
        of.update({stage: float_weights(of[stage], self.specs[stage]) for stage in stages if stage in of})

    def look_ahead(self) -> None:
        """Which variants' renderers do not take several frames at once."""
        renderers = {v: stages["render"] for v, stages in self.made.graphs.items() if "render" in stages}

        def make(advance: Advance) -> Files:
            found = {}
            for variant, graph in renderers.items():
                try:
                    check_batch_free(graph, self.specs["render"])
                except SpecError as error:
                    found[variant] = str(error)
                advance()
            return {"found.json": pack_json(found)}

        hashes = {variant: hashlib.sha256(_bytes(graph)).hexdigest() for variant, graph in renderers.items()}
        files = self.work.do("look-ahead", len(renderers), make, graphs=hashes)
        self.made.one_at_a_time = json.loads(files["found.json"])

    def _stored_stage(self, stage: str) -> None:
        """A stage that computes in float32, its weights in 8 bits where they are on a grid: for CPUs, beside INT8."""
        model, spec = self.made.graphs["fp32"][stage], self.specs[stage]

        def make(advance: Advance) -> Files:
            stored = store_grid(model, spec)
            if stored is None:
                return {"made.json": pack_json({})}
            found = compare_stage(stored, spec, self.rollouts)
            check_accuracy("fp32", {stage: found})
            return {"graph.onnx": _bytes(stored), "made.json": pack_json(found.to_json())}

        files = self.work.do(f"8-bit weights of {stage}", 1, make, **self._inputs(stage))
        if "graph.onnx" in files:
            difference = StageDifference.from_json(json.loads(files["made.json"]))
            self.made.add("int8-u8", stage, onnx.load_from_string(files["graph.onnx"]), difference, ())
            self.made.exact.add(("int8-u8", stage))

    def _int8_stage(
        self,
        model: onnx.ModelProto,
        spec: StageSpec,
        plan: QuantizePlan,
        given: Sequence[Any],
        held: Sequence[Any],
        options: Quantize,
        opset_cap: int,
    ) -> None:
        stage = spec.stage
        whole = {**self._inputs(stage), "graph": hashlib.sha256(_bytes(model)).hexdigest()}
        inputs = {**whole, "samples": self.made.calibration_sha256, "plan": asdict(plan)}
        judge = SensitivityMetric(model, spec, held)
        if options.smooth:
            float_model, inputs["smooth"] = model, options.smooth

            def soften(advance: Advance) -> Files:
                return {"graph.onnx": _bytes(smooth(float_model, plan.layers, given, options.smooth))}

            model = onnx.load_from_string(self.work.do(f"smoothing {stage}", 1, soften, **inputs)["graph.onnx"])
            plan = make_plan(model, spec, options)

        bits = sorted(WEIGHT_LEVELS) if options.compensate else []

        def look(advance: Advance) -> Files:
            return pack_observations(observe(model, given, *observed_tensors(model, plan), advance, bits))

        seen = unpack_observations(self.work.do(f"ranges {stage}", len(given), look, bits=bits, **inputs))
        inputs["options"] = asdict(options)
        found: list[Sensitivity] = []
        if options.sensitivity or judge.bounded(options):

            def measure(advance: Advance) -> Files:
                made = measure_sensitivity(model, plan, seen, options, judge, advance)
                return {"layers.json": pack_json([asdict(s) for s in made])}

            layers = min(len(plan.layers), MAX_LAYERS)
            files = self.work.do(f"sensitivity {stage}", layers, measure, **inputs)
            found = [Sensitivity(**s) for s in json.loads(files["layers.json"])]
            self.made.sensitivity[stage] = [s.to_json(judge.key) for s in found]

        def make(advance: Advance) -> Files:
            spared = spared_layers(found, options.spare)
            sparing = replace(options, keep=(*options.keep, *spared))
            ranked = [s.layer for s in found if s.layer not in spared]
            fewer = make_plan(model, spec, sparing)
            made = quantize_stage(model, fewer, seen, sparing, judge, ranked, opset_cap, advance)
            graphs = {f"{variant}.onnx": _bytes(graph) for variant, graph in made.graphs.items()}
            return {**graphs, "made.json": pack_json({"kept": made.kept, "refused": made.refused})}

        files = self.work.do(f"INT8 {stage}", 2, make, opset_cap=opset_cap, **inputs)
        described = json.loads(files["made.json"])
        for variant, why in described["refused"].items():
            self.made.refused.setdefault(variant, {})[stage] = why
        graphs = {variant: files[f"{variant}.onnx"] for variant in described["kept"]}

        def compare(advance: Advance) -> Files:
            compared = {}
            for variant, data in graphs.items():
                found = measure_int8(onnx.load_from_string(data), spec, self.rollouts, variant)
                compared[variant] = found.to_json()
                advance()
            return {"differences.json": pack_json(compared)}

        files = self.work.do(f"INT8 {stage} verified", len(graphs), compare, **whole, **graphs)
        for variant, difference in json.loads(files["differences.json"]).items():
            graph, kept = onnx.load_from_string(graphs[variant]), described["kept"][variant]
            self.made.add(variant, stage, graph, StageDifference.from_json(difference), kept)

    def latencies(self) -> dict[str, dict[str, dict[str, GraphLatency]]]:
        """Of every graph, by variant, stage and engine, on this machine."""
        found: dict[str, dict[str, dict[str, GraphLatency]]] = {variant: {} for variant in self.made.graphs}
        for stage in STAGES:
            graphs = {v: stages[stage] for v, stages in self.made.graphs.items() if stage in stages}

            def make(
                advance: Advance, graphs: Mapping[str, onnx.ModelProto] = graphs, spec: StageSpec = self.specs[stage]
            ) -> Files:
                measured = measure_latencies(graphs, spec, self.rollouts[0])
                described = {v: {e: asdict(x) for e, x in by_engine.items()} for v, by_engine in measured.items()}
                return {"latencies.json": pack_json(described)}

            hashes = {v: hashlib.sha256(_bytes(graph)).hexdigest() for v, graph in graphs.items()}
            engines = versions(*available_engines())
            files = self.work.do(f"times {stage}", 1, make, graphs=hashes, engines=engines, stage=stage)
            for variant, by_engine in json.loads(files["latencies.json"]).items():
                found[variant][stage] = {engine: GraphLatency(**x) for engine, x in by_engine.items()}
        return found

    def _inputs(self, stage: str) -> dict[str, Any]:
        return {"stage": stage, "graph": self._hashes[stage], "rollouts": self._hashes["rollouts"]}


def _freed(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The renderer for any number of frames at once; as it is where it cannot be."""
    try:
        free = free_batch(model, spec)
        check_batch_free(free, spec)
    except SpecError:
        return model
    return free


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
