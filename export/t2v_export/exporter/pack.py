"""Results of passes as files and back: graphs, rollouts, calibration sets and observations, in npz and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from t2v_calibration.calibration_set import CalibrationSet
from t2v_calibration.ranges import Histogram
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.spec import StageSpec
from t2v_export.exporter.results import VariantGraph
from t2v_export.quantize.observe import Observations
from t2v_export.store import Files
from t2v_export.verify.difference import StageDifference
from t2v_export.verify.golden import pack_npz
from t2v_export.verify.reference import ReferenceRollout, draw

Array = NDArray[Any]


def pack_json(data: Any) -> bytes:
    """JSON, the same bytes for the same data; floats come back exactly."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False).encode()


def pack_graph(model: onnx.ModelProto) -> bytes:
    """An ONNX file, the same bytes for the same graph."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def pack_variant(graph: VariantGraph) -> Files:
    """A verified graph."""
    assert graph.difference is not None
    described = {"float32_layers": graph.float32_layers, "difference": graph.difference.to_json(), "exact": graph.exact}
    return {"graph.onnx": graph.data, "graph.json": pack_json(described)}


def pack_refusal(why: str) -> Files:
    """The reason why a variant has no graph."""
    return {"refused.json": pack_json(why)}


def unpack_refusal(files: Files) -> str | None:
    """The reason why a variant has no graph; None where the files hold a graph."""
    return str(json.loads(files["refused.json"])) if "refused.json" in files else None


def unpack_variant(files: Files) -> VariantGraph:
    described = json.loads(files["graph.json"])
    difference = StageDifference.from_json(described["difference"])
    return VariantGraph(files["graph.onnx"], difference, tuple(described["float32_layers"]), described["exact"])


def pack_rollouts(rollouts: Sequence[ReferenceRollout]) -> Files:
    """What torch made of each caption, without tokens and draws: caption and seed give these again."""
    arrays: dict[str, Array] = {}
    for index, rollout in enumerate(rollouts):
        arrays |= {f"{index}/condition": rollout.condition, f"{index}/levels": rollout.levels}
        arrays |= {f"{index}/outputs/{name}": value for name, value in rollout.outputs.items()}
    return {"rollouts.npz": pack_npz(arrays)}


def unpack_rollouts(
    files: Files, specs: Mapping[str, StageSpec], tokenizer: CaptionTokenizer, captions: Sequence[str], seed: int
) -> tuple[ReferenceRollout, ...]:
    arrays = _arrays(files["rollouts.npz"])
    rollouts = []
    for index, caption in enumerate(captions):
        tokens = tokenizer(caption)
        outputs = {t.name: arrays[f"{index}/outputs/{t.name}"] for t in specs["motion"].outputs}
        draws = draw(specs, seed + index)
        condition, levels = arrays[f"{index}/condition"], arrays[f"{index}/levels"]
        rollouts.append(ReferenceRollout(caption, tokens.ids, tokens.mask, condition, draws, outputs, levels))
    return tuple(rollouts)


def pack_calibration(sets: Mapping[str, CalibrationSet]) -> Files:
    """Calibration sets by name; all samples of a stage have the same inputs and are stacked."""
    arrays = {
        f"{name}/{stage}/{tensor}": np.stack([feeds[tensor] for feeds in samples])
        for name, made in sets.items()
        for stage, samples in made.samples.items()
        for tensor in (samples[0] if samples else ())
    }
    return {
        "samples.npz": pack_npz(arrays),
        "sets.json": pack_json({name: made.sha256 for name, made in sets.items()}),
    }


def unpack_calibration(files: Files) -> dict[str, CalibrationSet]:
    stacked: dict[str, dict[str, dict[str, Array]]] = {}
    for key, array in _arrays(files["samples.npz"]).items():
        name, stage, tensor = key.split("/", 2)
        stacked.setdefault(name, {}).setdefault(stage, {})[tensor] = array
    sets = {}
    for name, sha256 in json.loads(files["sets.json"]).items():
        sets[name] = CalibrationSet({stage: _unstack(tensors) for stage, tensors in stacked[name].items()}, sha256)
    return sets


def pack_observations(seen: Observations) -> Files:
    histograms = list(seen.histograms.values())
    arrays: dict[str, Array] = {f"means/{i}": mean for i, mean in enumerate(seen.means.values())}
    edges = np.asarray([(h.low, h.high, h.reach) for h in histograms], np.float64)
    arrays |= {"edges": edges, "counts": np.asarray([h.counts for h in histograms], np.int64)}
    arrays |= {f"rounded/{i}": weight for i, weight in enumerate(seen.rounded.values())}
    names = {
        "tensors": list(seen.histograms),
        "layers": list(seen.means),
        "ranks": dict(seen.ranks),
        "rounded": list(seen.rounded),
    }
    return {"observations.npz": pack_npz(arrays), "names.json": pack_json(names)}


def unpack_observations(files: Files) -> Observations:
    arrays, names = _arrays(files["observations.npz"]), json.loads(files["names.json"])
    histograms = {
        name: Histogram(low, high, reach, counts)
        for name, (low, high, reach), counts in zip(names["tensors"], arrays["edges"].tolist(), arrays["counts"])
    }
    means = {layer: arrays[f"means/{i}"] for i, layer in enumerate(names["layers"])}
    rounded = {(layer, bits): arrays[f"rounded/{i}"] for i, (layer, bits) in enumerate(names["rounded"])}
    return Observations(histograms, means, names["ranks"], rounded)


def _unstack(tensors: Mapping[str, Array]) -> tuple[Mapping[str, Array], ...]:
    return tuple(dict(zip(tensors, values)) for values in zip(*tensors.values()))


def _arrays(data: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}
