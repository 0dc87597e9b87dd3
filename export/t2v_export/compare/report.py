"""The report of a comparison as JSON: plain numbers, the same for the same inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.errors import BundleError, UsageError
from t2v_edge.util.machine import machine, versions
from t2v_export.compare import clips
from t2v_export.compare.comparison import Comparison, captions_sha256
from t2v_export.compare.measures import drift
from t2v_export.compare.measures.frechet import frechet_distance
from t2v_export.compare.measures.temporal import TemporalSums
from t2v_export.evaluate.accuracy import paired_differences
from t2v_export.evaluate.fidelity import spread
from t2v_export.evaluate.mixes import AGAINST, EXACT
from t2v_export.evaluate.readings import UNNAMED, Readings, named_values
from t2v_export.evaluate.tasks import Pair

FORMAT, FORMAT_VERSION = "t2v-compare", 1
DIGITS = 6
TOOLS = ("numpy", "scipy", "onnx", "onnxruntime", "openvino", "opencv-python-headless")
Json = dict[str, Any]


@dataclass(frozen=True)
class CompareBudget:
    """Demands on the judged mix.

    max_drop: of all-attributes accuracy, percentage points. min_psnr: mean PSNR in dB of frames rendered alone.
    """

    max_drop: float | None = None
    min_psnr: float | None = None


def make_report(measured: Comparison, budget: CompareBudget) -> Json:
    """Put what was measured into one JSON object; raises `UsageError` where the budget asks for what was not measured.

    Numbers have six significant digits.
    """
    options, setting = measured.options, measured.setting
    readings = _readings(measured)
    with Bundle.open(setting.mixes[0].bundle) as bundle:
        manifest = bundle.manifest
        report = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "bundle": setting.mixes[0].bundle.name,
            "model": manifest.name,
            "video": manifest.video.to_json(),
            "against": options.against.name if options.against else None,
            "default": {"lane": measured.default, "variants": dict(manifest.default)},
            "played": _played(measured),
            "absent": _absent(measured, readings),
            "lanes": {mix.name: _mix(measured, mix.name, readings) for mix in setting.mixes},
            "pairs": [_pair(measured, pair, readings) for pair in setting.pairs],
            "frechet_yardstick": _yardstick(measured),
            "kept_in_float32": {
                v: {s: list(g.float32_layers) for s, g in graphs.items() if g.float32_layers}
                for v, graphs in manifest.variants.items()
            },
            "sensitivity": sensitivity(bundle),
            "machine": machine(),
            "versions": versions(*TOOLS),
        }
    report["budget"] = judge(report, budget, measured.judged)
    return dict(rounded(report))


def _played(measured: Comparison) -> Json:
    options, setting = measured.options, measured.setting
    return {
        "captions": len(setting.captions),
        "captions_sha256": captions_sha256(options.captions),
        "seed": options.seed,
        "engine": options.engine,
        "clips": len(measured.clips),
        "clip_seconds": options.seconds,
        "drift_runs": len(measured.drifts),
        "drift_steps": options.drift_steps if measured.drifts else 0,
        "timing": options.timing,
    }


def _readings(measured: Comparison) -> dict[str, Readings]:
    """By mix; empty without an evaluator or where no caption names anything."""
    if measured.evaluator is None:
        return {}
    slots = measured.evaluator.slots
    named = named_values(measured.options.captions, slots)
    if (named == UNNAMED).all():
        return {}
    return {
        mix.name: Readings(tuple(slots), named, np.array([r[mix.name].values for r in measured.readings]))
        for mix in measured.setting.mixes
    }


def _absent(measured: Comparison, readings: Mapping[str, Readings]) -> list[str]:
    """Sentences about figures that are not in the report, and why."""
    sentences = []
    if measured.evaluator is None:
        sentences.append("Accuracy and Frechet distance: there is no evaluator; give one with --evaluator.")
    elif not readings:
        sentences.append("Accuracy: no caption says what it names; give --captions a JSON-lines file with slots.")
    if not measured.drifts:
        sentences.append("Drift: no free runs were asked for.")
    if not measured.options.timing:
        sentences.append("Latency and memory: left out by --no-timing.")
    if measured.clips and not measured.clips[0].temporal:
        sentences.append("Temporal quality: frames are too small for optical flow.")
    for pair in measured.setting.pairs:
        if pair.baseline == AGAINST and pair.candidate == EXACT:
            sentences += [
                f"Against {measured.options.against.name if measured.options.against else AGAINST}: {reason}."
                for reason in pair.comparable.reasons()
            ]
    return sentences


def _mix(measured: Comparison, name: str, readings: Mapping[str, Readings]) -> Json:
    """The figures of a mix by itself."""
    mix = next(mix for mix in measured.setting.mixes if mix.name == name)
    found: Json = {"variants": dict(mix.variants), "filled_with_fp32": list(mix.filled), **measured.costs[name]}
    if name in readings:
        found["accuracy"] = readings[name].accuracy()
        found["chance"] = {slot: level["expected"] for slot, level in readings[name].chance().items()}
    whole = _temporal(measured, (clips.WHOLE, name, name))
    if whole is not None:
        found["temporal"] = {"warping_error": whole.warp, "flicker": whole.flicker}
    if measured.drifts:
        found["motion_speed"] = float(np.mean([d.lively[name].speed for d in measured.drifts]))
        found["motion_spread"] = float(np.mean([d.lively[name].spread for d in measured.drifts]))
    if name in measured.latencies:
        found["latency_ms"] = measured.latencies[name]
        found["peak_memory_bytes"] = measured.memory[name]
    return found


def _pair(measured: Comparison, pair: Pair, readings: Mapping[str, Readings]) -> Json:
    """The figures of a candidate against its baseline; those that cannot be had are left out."""
    one, other = pair.candidate, pair.baseline
    found: Json = {"candidate": one, "baseline": other}
    if readings:
        found["accuracy"] = paired_differences(readings[one], readings[other], measured.options.seed)
    if measured.readings:
        found["frechet"] = frechet_distance(*(_features(measured, name) for name in (one, other)))
    modes = {mode: _frames(measured, (mode, one, other)) for mode in (clips.ALONE, clips.WHOLE)}
    found["frames"] = {mode: figures for mode, figures in modes.items() if figures}
    found["clips_with_the_same_motion"] = sum((one, other) in clip.same_motion for clip in measured.clips)
    found["temporal"] = {
        clips.WHOLE: _ratios(*(_temporal(measured, (clips.WHOLE, name, name)) for name in (one, other))),
        clips.ALONE: _ratios(
            _temporal(measured, (clips.ALONE, one, other)), _temporal(measured, (clips.WHOLE, other, other))
        ),
    }
    if measured.drifts:
        found["drift"] = _drift(measured, one, other)
    return found


def _features(measured: Comparison, name: str) -> np.ndarray:
    return np.stack([reading[name].features for reading in measured.readings])


def _yardstick(measured: Comparison) -> float | None:
    """The Frechet distance of FP32 to itself, played with other seeds: how much chance alone makes."""
    if len(measured.readings) < 2:
        return None
    return frechet_distance(_features(measured, EXACT), _features(measured, ""))


def _frames(measured: Comparison, key: tuple[str, str, str]) -> Json | None:
    found = [clip.frames[key] for clip in measured.clips if key in clip.frames]
    if not found:
        return None
    psnr = np.concatenate([f.psnr_db for f in found])
    return {
        "psnr_db": spread(psnr),
        "ssim": spread(np.concatenate([f.ssim for f in found])),
        "mean_abs_error": float(np.mean(np.concatenate([f.error for f in found]))),
        "frames": len(psnr),
        "equal_frames": sum(f.equal for f in found),
        "psnr_db_by_frame": np.mean([f.psnr_db for f in found], axis=0).tolist(),
    }


def _temporal(measured: Comparison, key: tuple[str, str, str]) -> TemporalSums | None:
    found = [clip.temporal[key] for clip in measured.clips if key in clip.temporal]
    if not found:
        return None
    total = TemporalSums()
    for sums in found:
        total.merge(sums)
    return total


def _ratios(one: TemporalSums | None, other: TemporalSums | None) -> Json | None:
    """Changes in percent: 0 if both are the same, None without a divisor."""
    if one is None or other is None:
        return None
    return {
        "warping_error": one.warp,
        "warping_error_change_percent": change(one.warp, other.warp),
        "flicker": one.flicker,
        "flicker_change_percent": change(one.flicker, other.flicker),
    }


def change(one: float | None, other: float | None) -> float | None:
    """The change from `other` to `one` in percent, or None if it is undefined."""
    if one is None or other is None:
        return None
    if one == other:
        return 0.0
    return 100 * (one / other - 1) if other else None


def _drift(measured: Comparison, one: str, other: str) -> Json:
    runs = measured.drifts
    found: Json = {
        "speed_change_percent": change(*(float(np.mean([d.lively[n].speed for d in runs])) for n in (one, other))),
        "spread_change_percent": change(*(float(np.mean([d.lively[n].spread for d in runs])) for n in (one, other))),
    }
    for what in ("state", "motion"):
        curves = [getattr(d, what)[one, other] for d in runs if (one, other) in getattr(d, what)]
        if curves:
            found[what] = _curve(np.mean(curves, axis=0))
    frames = [d.frames[one, other] for d in runs if (one, other) in d.frames]
    if frames:
        found["psnr_db_after_steps"] = {str(at): float(np.mean([f[at] for f in frames])) for at in frames[0]}
    return found


def _curve(errors: np.ndarray) -> Json:
    """A mean relative error a step, thinned to about 60 points that lie evenly on a logarithmic axis."""
    steps = len(errors)
    kept = sorted({int(s) for s in np.geomspace(1, steps, 60).round()} | {steps})
    mean = {name: float(errors[low:high].mean()) for name, (low, high) in drift.windows(steps).items()}
    growth = 1.0 if mean["early"] == mean["late"] else mean["late"] / mean["early"] if mean["early"] else None
    return {
        "steps": kept,
        "relative_error": [float(errors[s - 1]) for s in kept],
        **mean,
        "windows": {name: list(bounds) for name, bounds in drift.windows(steps).items()},
        "late_to_early": growth,
    }


def sensitivity(bundle: Bundle) -> Json | None:
    """``sensitivity`` of the bundle's own report: by stage, its layers with what quantizing each costs; or None."""
    try:
        found = json.loads(bundle.read("report.json")).get("sensitivity")
    except (BundleError, ValueError, AttributeError):
        return None
    if not isinstance(found, dict):
        return None
    sound = {
        stage: [row for row in rows if isinstance(row, dict) and isinstance(row.get("layer"), str)]
        for stage, rows in found.items()
        if isinstance(rows, list)
    }
    return {stage: rows for stage, rows in sound.items() if rows} or None


def pair_of(report: Mapping[str, Any], candidate: str, baseline: str) -> Json | None:
    """The figures of a pair; None where it was not compared."""
    return next((p for p in report["pairs"] if (p["candidate"], p["baseline"]) == (candidate, baseline)), None)


def judge(report: Mapping[str, Any], budget: CompareBudget, mix: str) -> Json:
    """Whether the budget is kept by `mix`: each demand with what was found.

    The drop is against the --against model, or without one against FP32. PSNR is against FP32. Raises `UsageError` if
    the figure was not measured.
    """
    baseline = AGAINST if report["against"] else EXACT
    demands = []
    if budget.max_drop is not None:
        pair = pair_of(report, mix, baseline)
        if mix != baseline and (pair is None or "accuracy" not in pair):
            raise UsageError(
                "--max-drop asks for accuracy, which needs an evaluator and captions with slots: give "
                "--evaluator FOLDER and --captions FILE.jsonl"
            )
        drop = 0.0 - pair["accuracy"]["all"]["points"] if pair else 0.0
        kept, of = drop <= budget.max_drop + 1e-9, report["against"] or EXACT
        demands.append({"what": "drop_points", "limit": budget.max_drop, "found": drop, "baseline": of, "kept": kept})
    if budget.min_psnr is not None:
        pair = pair_of(report, mix, EXACT)
        found = pair["frames"][clips.ALONE]["psnr_db"]["mean"] if pair else 100.0
        kept = found >= budget.min_psnr
        demands.append({"what": "psnr_db", "limit": budget.min_psnr, "found": found, "baseline": EXACT, "kept": kept})
    return {"lane": mix, "demands": demands, "kept": all(d["kept"] for d in demands)}


def rounded(value: Any) -> Any:
    """Floats to six significant digits throughout, so that reports are short; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def to_bytes(report: Mapping[str, Any]) -> bytes:
    return (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def to_text(report: Mapping[str, Any], where: str) -> str:
    """A few lines for people: each pair, and whether the budget is kept."""
    lines = [
        f"{where}: {report['bundle']}, {report['played']['captions']} captions, "
        f"{report['played']['clips']} clips, seed {report['played']['seed']}",
        "candidate  baseline  accuracy, points          PSNR alone  PSNR whole  warping  state late/early",
    ]
    lines += [_pair_line(pair) for pair in report["pairs"]]
    lines += [f"absent: {sentence}" for sentence in report["absent"]]
    for demand in report["budget"]["demands"]:
        lines.append(f"{report['budget']['lane']}: {sentence_of(demand)}")
    return "\n".join(lines)


def _pair_line(pair: Json) -> str:
    accuracy = pair.get("accuracy", {}).get("all")
    points = "-"
    if accuracy is not None:
        points = f"{accuracy['points']:+.2f} ({accuracy['low']:+.2f} to {accuracy['high']:+.2f})"
    psnr = [
        f"{pair['frames'][mode]['psnr_db']['mean']:.1f} dB" if mode in pair["frames"] else "-"
        for mode in (clips.ALONE, clips.WHOLE)
    ]
    warp = (pair["temporal"][clips.ALONE] or pair["temporal"][clips.WHOLE] or {}).get("warping_error_change_percent")
    growth = pair.get("drift", {}).get("state", {}).get("late_to_early")
    return (
        f"{pair['candidate']:9}  {pair['baseline']:8}  {points:24}  {psnr[0]:>10}  {psnr[1]:>10}  "
        f"{'-' if warp is None else f'{warp:+.1f} %':>7}  {'-' if growth is None else f'{growth:.2f}':>16}"
    )


def sentence_of(demand: Mapping[str, Any]) -> str:
    """One demand of a budget in words."""
    kept = "kept" if demand["kept"] else "NOT kept"
    if demand["what"] == "drop_points":
        found = demand["found"]
        moves = f"{'drops' if found >= 0 else 'rises'} by {abs(found):.2f} points against {demand['baseline']}"
        return f"All-attributes accuracy {moves}, a drop of {demand['limit']:g} is allowed: {kept}"
    return f"Frames rendered alone have {demand['found']:.2f} dB, at least {demand['limit']:g} are demanded: {kept}"
