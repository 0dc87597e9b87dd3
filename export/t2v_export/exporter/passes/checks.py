"""Checks of every graph: by the device's engines, and for several frames at once."""

from __future__ import annotations

import json
from dataclasses import replace

from t2v_edge.errors import SpecError
from t2v_export.exporter.pack import pack_json
from t2v_export.exporter.results import PassResults
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.exporter.targets import check_engines
from t2v_export.graph.batch import check_batch_free
from t2v_export.store import Files


def check_targets(context: PassContext, results: PassResults) -> PassResults:
    """Check all graphs against every TensorRT of the device. Raises `SpecError` naming the node."""
    check_engines({v: {s: g.model() for s, g in of.items()} for v, of in results.graphs.items()}, context.profile)
    return results


def check_frames_at_once(context: PassContext, results: PassResults) -> PassResults:
    """The variants whose renderers take one frame at a time, and why."""
    renderers = results.of_stage("render")

    def make(advance: Advance) -> Files:
        found = {}
        for variant, graph in renderers.items():
            try:
                check_batch_free(graph.model(), context.specs["render"])
            except SpecError as error:
                found[variant] = str(error)
            advance()
        return {"found.json": pack_json(found)}

    files = context.do(len(renderers), make, graphs={variant: graph.data for variant, graph in renderers.items()})
    return replace(results, one_at_a_time=json.loads(files["found.json"]))
