"""``t2v-edge inspect``: what a bundle holds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from t2v_edge.commands.arguments import add_bundle, add_json
from t2v_edge.commands.output import print_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from t2v_edge.bundle.bundle import Bundle
    from t2v_edge.bundle.manifest import Manifest

DESCRIPTION = "Check a bundle and show its stages, variants, sizes, quality and provenance."
EXAMPLES = """examples:
  t2v-edge inspect BUNDLE
  t2v-edge inspect BUNDLE.zip --verify
  t2v-edge inspect BUNDLE --json | jq .quality"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument(
        "--verify", action="store_true", help="also check every graph: contract, operators, NaN weights"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from t2v_edge.bundle.bundle import Bundle
    from t2v_edge.bundle.golden import verify_bundle

    with Bundle.open(args.bundle) as bundle:
        manifest = bundle.manifest
        graphs: dict[str, dict[str, Any]] = {}
        for variant, entries in manifest.variants.items():
            graphs[variant] = {stage: describe_graph(bundle, variant, stage, args.verify) for stage in entries}
        if args.verify:
            verify_bundle(bundle)
    data = {
        **manifest.to_json(),
        "path": str(args.bundle),
        "verified": args.verify,
        "graphs": graphs,
        "total_bytes": sum(entry.bytes for entry in manifest.files.values()),
    }
    print_result(data, describe(manifest, graphs, args.verify), args.json)
    return 0


def describe_graph(bundle: Bundle, variant: str, stage: str, deep: bool) -> dict[str, Any]:
    """File, precision, opset and bytes of a graph. deep: also weight bytes and operators."""
    entry = bundle.manifest.variants[variant][stage]
    described: dict[str, Any] = {**entry.to_json(), "bytes": bundle.manifest.files[entry.file].bytes}
    if deep:
        summary = bundle.summary(variant, stage)
        described["weight_bytes"] = summary.weight_bytes
        described["operators"] = dict(sorted(summary.operators.items()))
    return described


def describe(manifest: Manifest, graphs: Mapping[str, Mapping[str, Any]], verified: bool) -> str:
    from t2v_edge.spec import STAGES

    video = manifest.video
    lines = [
        f"{manifest.name}: {video.width}x{video.height} at {video.fps} fps, captions of up to "
        f"{manifest.tokenizer.tokens} tokens, for {manifest.device}",
        "whole: every graph was checked" if verified else "whole: sizes and hashes agree",
        "",
        "stages",
    ]
    for stage in STAGES:
        spec = manifest.stages[stage]
        lines.append(f"  {stage:<7}{_shapes(spec.inputs)} -> {_shapes(spec.outputs)}")
    lines += ["", "variants" + " " * 13 + "bytes  file"]
    for variant, entries in graphs.items():
        for stage, graph in entries.items():
            mark = "*" if manifest.default[stage] == variant else " "
            lines.append(
                f" {mark}{variant:<9}{stage:<7}{graph['bytes']:>10}  {graph['file']} (opset {graph['opset']})"
                + _cost(graph)
                + _quality(manifest, variant, stage)
                + _kept(graph)
            )
    lines += ["  * is the default", "", "provenance"]
    lines += [f"  {key}: {_value(value)}" for key, value in manifest.provenance.items()]
    return "\n".join(lines)


def _shapes(tensors: Any) -> str:
    return ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in tensors)


def _quality(manifest: Manifest, variant: str, stage: str) -> str:
    measured = manifest.quality.get(variant)
    values = measured.get(stage) if isinstance(measured, dict) else None
    if not isinstance(values, dict) or not isinstance(values.get("max_rel"), (int, float)):
        return ""
    return f"  differs from the checkpoint by at most {values['max_rel']:.1e}"


def _cost(graph: Mapping[str, Any]) -> str:
    macs = graph.get("macs")
    return "" if macs is None else f"  {macs / 1e6:.3g} MMAC a run"


def _kept(graph: Mapping[str, Any]) -> str:
    layers = graph.get("float32_layers", ())
    return f"; in float32: {', '.join(layers)}" if layers else ""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return "none" if value is None else str(value)
