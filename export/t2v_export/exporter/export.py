"""The export of a checkpoint to a bundle, which is written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2v_edge.bundle.bundle import write_bundle
from t2v_edge.bundle.manifest import Manifest
from t2v_edge.bundle.target import bundle_target
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.util.targets import check_targets
from t2v_export.checkpoint.checkpoint import load_checkpoint
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.compress.passes import PassOptions, compress
from t2v_export.exporter.choose import shipped
from t2v_export.exporter.describe import bundle_files, make_manifest, make_report
from t2v_export.exporter.options import DEFAULTS, VARIANTS, ExportOptions
from t2v_export.exporter.plan import plan_export, run_plan
from t2v_export.exporter.runner import PassContext, PassRunner
from t2v_export.verify.difference import StageDifference
from t2v_export.verify.latency import Latencies

__all__ = ["VARIANTS", "ExportOptions", "Exported", "export_checkpoint"]


@dataclass(frozen=True)
class Exported:
    """A written bundle, and what was measured of every graph made.

    `differences` from torch are by variant and stage, `latencies` also by engine. `report` is the content of
    ``report.json``.
    """

    path: Path
    manifest: Manifest
    differences: Mapping[str, Mapping[str, StageDifference]]
    latencies: Latencies
    report: Mapping[str, Any]


def export_checkpoint(
    path: Path | str, out: Path | str, profile: DeviceProfile, options: ExportOptions = DEFAULTS
) -> Exported:
    """Export the checkpoint folder `path` for a device and write the bundle `out`, a folder or a .zip.

    On an error nothing is written. Each error names its remedy.

    Raises:
        CheckpointError: the checkpoint cannot be read, or a stage gives NaN or infinity.
        SpecError: a graph is not valid, or an engine of the device would refuse or misread it. It names the node.
        AccuracyError: a graph is too far from torch.
        BundleError: `out` is not free or a bundle, or cannot be written. This is checked before any work.
    """
    check_targets([(Path(out), bundle_target(Path(out)))], [path])
    checkpoint = load_checkpoint(path, options.allow_code)
    if options.recipe and options.recipe.checkpoint_passes:
        passing = PassOptions(options.seed, options.allow_code, options.store, options.train_on, options.progress)
        checkpoint = compress(checkpoint, options.recipe, passing).checkpoint
    runner = PassRunner(options.store, options.progress, checkpoint=checkpoint.sha256)
    context = PassContext(runner, checkpoint, caption_tokenizer(checkpoint), profile, options)
    results = run_plan(plan_export(options, profile), context)
    taken = shipped(results.graphs, results.choice, options.ship)
    manifest, report = make_manifest(context, results, taken), make_report(context, results, taken)
    written = write_bundle(out, manifest, bundle_files(context, results, manifest, report), late=True)
    return Exported(Path(out), written, results.differences, results.latencies, report)
