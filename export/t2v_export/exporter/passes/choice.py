"""The default variant of each stage, within the accuracy budget where there is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from t2v_edge.bundle.bundle import write_bundle
from t2v_export.exporter.budget import keep_budget
from t2v_export.exporter.choose import VariantChoice, choose
from t2v_export.exporter.describe import bundle_files, make_manifest
from t2v_export.exporter.pack import pack_json
from t2v_export.exporter.results import PassResults
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.store import Files
from t2v_export.weights.folder import folder_sha256


def choose_default(context: PassContext, results: PassResults) -> PassResults:
    """The default variants, from the measured latencies and, where they count, the sizes of graphs.

    A graph that loses something gains by its size only in the smallest bundle, `ship` "chosen".
    """
    smallest = context.options.ship == "chosen"
    sizes = {
        variant: {s: len(g.data) for s, g in stages.items() if smallest or variant == "fp32" or g.exact}
        for variant, stages in results.graphs.items()
    }
    return replace(results, choice=choose(context.profile, results.graphs, results.latencies, sizes))


def keep_accuracy(context: PassContext, results: PassResults) -> PassResults:
    """The default variants, more exact where the evaluator asks for them, and what it read."""
    budget, choice = context.options.accuracy, results.choice
    assert budget is not None
    manifest = make_manifest(context, results, {variant: tuple(of) for variant, of in results.graphs.items()})
    files = bundle_files(context, results, manifest, {})

    def make(advance: Advance) -> Files:
        with TemporaryDirectory(prefix="t2v-export-") as folder:
            write_bundle(Path(folder) / "whole", manifest, files)
            found = keep_budget(Path(folder) / "whole", manifest.default, context.profile.precisions, budget, advance)
        return {"budget.json": pack_json({"default": dict(found.default), "rounds": list(found.rounds)})}

    made = context.do(
        len(budget.captions),
        make,
        graphs={name: data for name, data in files.items() if name.endswith(".onnx")},
        default=dict(manifest.default),
        evaluator=folder_sha256(budget.evaluator),
        captions=[[c.text, dict(c.slots)] for c in budget.captions],
        max_drop=budget.max_drop,
    )
    found = json.loads(made["budget.json"])
    default = dict(choice.default)
    for stage, (variant, why) in choice.default.items():
        if found["default"][stage] != variant:
            lost = f"{variant} would lose more than {budget.max_drop:g} points; {why}"
            default[stage] = (found["default"][stage], lost)
    return replace(results, choice=VariantChoice(default, choice.lost), rounds=found["rounds"])
