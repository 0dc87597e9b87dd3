"""The roofline estimate against measurements: ``python -m benchmarks.common.roofline``.

It measures nothing itself. It takes the stages that `benchmarks.cpu.peers` timed in this runtime, and the bundles that
were timed. It estimates each stage on the profile of the machine, and keeps both, with what the stage costs. With --gpu
it adds the stages of a results file that holds `median_ms` by bundle, stage and variant, in any order of nesting.

It also compares whole frames: frames a second, made one by one, and the first frame of a caption. Each is given for the
best variants by estimate. If the chosen variants were measured, it is given for them as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.methods import OURS
from benchmarks.common.results import STUDENT, TEACHER
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.manifest import COSTS, Manifest
from t2v_edge.device.profile import PRECISIONS, load_profile
from t2v_edge.device.roofline import CPU as CPU_CONSTANTS
from t2v_edge.device.roofline import GPU as GPU_CONSTANTS
from t2v_edge.device.roofline import check_against, estimate
from t2v_edge.spec import STAGES
from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE

FORMAT, VERSION = "t2v-benchmark-roofline", 1
RESULTS = Path(__file__).parents[1] / "results"
OTHER_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime", "onnxruntime-cuda", "openvino", "torch")
CPU = "cpu-x86-avx2"
"""The profile of the machine that `benchmarks/results/peers.json` was measured on."""


def measured_by_peers(results: Mapping[str, Any], model: str) -> dict[str, dict[str, float]]:
    """Medians of this runtime's stages by variant and stage, in milliseconds."""
    ours = next(c for c in results["contenders"] if (c["model"], c["method"]) == (model, OURS))
    found: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        found.setdefault(ours["variants"][stage], {})[stage] = ours["figures"][f"{stage}_ms"]["median"]
    return found


def whole_by_peers(results: Mapping[str, Any], model: str) -> dict[str, float]:
    """Frames a second and milliseconds to a caption's first, of this runtime, by the names that an estimate has."""
    ours = next(c for c in results["contenders"] if (c["model"], c["method"]) == (model, OURS))
    return {"fps": ours["figures"]["base_fps"]["median"], "first_frame_ms": ours["figures"]["first_frame_ms"]["median"]}


def whole_on_gpu(results: Mapping[str, Any], bundle: str) -> dict[str, float]:
    """The same of what `benchmarks.gpu.engines` kept."""
    parts = results["bundles"][bundle]
    return {"fps": parts["stream 1"]["fps"], "first_frame_ms": parts["captions"]["first_frame_ms"]["p50"]}


def measured_in(results: Any, bundle: str, engine: str = "tensorrt") -> dict[str, dict[str, float]]:
    """Each `median_ms` of `results` whose path of keys names `bundle`, a stage and a variant: by variant and stage.

    Paths that name another engine are passed over. Raises `ValueError` where nothing is found.
    """
    found: dict[str, dict[str, float]] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            for item in value if isinstance(value, list) else ():
                walk(item, path)
            return
        named = (*path, *(item for item in value.values() if isinstance(item, str)))
        # The innermost counts: a stage that was chosen among variants names the chosen one around all of them.
        stage = next((word for word in reversed(named) if word in STAGES), None)
        variant = next((word for word in reversed(named) if word in PRECISIONS), None)
        other = [word for word in named if word in OTHER_ENGINES and word != engine]
        if isinstance(value.get("median_ms"), (int, float)) and bundle in named and stage and variant and not other:
            found.setdefault(variant, {})[stage] = float(value["median_ms"])
        for key, item in value.items():
            walk(item, (*named, str(key)))

    walk(results, ())
    if not found:
        raise ValueError(f"no median_ms of {bundle} by stage and variant")
    return found


def one_by_one(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `benchmarks.gpu.engines` kept, the builds for one frame at once, by bundle, and the ``gpu``."""
    builds = {name: parts["build 1"] for name, parts in results["bundles"].items() if "stages" in parts["build 1"]}
    return {**builds, "gpu": next((build["gpu"] for build in builds.values()), None)}


def profile_of(results: Mapping[str, Any]) -> str:
    """The profile of the GPU that a results file names under ``gpu``. Raises `ValueError` if no profile fits."""
    gpu = results.get("gpu")
    name = str(gpu.get("name") if isinstance(gpu, dict) else gpu)
    known = [profile for profile in ("h100", "h200") if profile in name.lower()]
    if not known:
        raise ValueError(f"no profile is known for the GPU {name!r}")
    return known[0]


def checks_of(
    device: str, model: str, manifest: Manifest, measured: Mapping[str, Mapping[str, float]], source: str
) -> list[dict[str, Any]]:
    """Each stage's costs, its estimate and what was measured, as JSON. `source`: where the measurement stands."""
    rows = []
    for check in check_against(load_profile(device), manifest.variants, measured):
        entry = manifest.variants[check.variant][check.stage]
        rows.append(
            {
                "device": device,
                "model": model,
                "variant": check.variant,
                "stage": check.stage,
                "costs": {key: getattr(entry, key) for key in COSTS},
                "estimated_ms": check.estimated_ms,
                "measured_ms": check.measured_ms,
                "ratio": check.ratio,
                "measured_in": source,
            }
        )
    return rows


def whole_checks(
    device: str, model: str, manifest: Manifest, measured: Mapping[str, float], source: str
) -> list[dict[str, Any]]:
    """Whole frames, measured and estimated, as JSON. A ratio is estimate over measurement."""
    found = estimate(load_profile(device), manifest)
    return [
        {
            "device": device,
            "model": model,
            "figure": figure,
            "estimated": getattr(found, figure),
            "measured": value,
            "ratio": getattr(found, figure) / value,
            "measured_in": source,
        }
        for figure, value in measured.items()
    ]


def constants() -> dict[str, Any]:
    """What today's estimates are made with."""
    return {"gpu": asdict(GPU_CONSTANTS), "cpu": asdict(CPU_CONSTANTS)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.common.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, metavar="BUNDLE", help="the reference's bundle")
    parser.add_argument("--student", type=Path, required=True, metavar="BUNDLE", help="the student's bundle")
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="results of a GPU besides, such as results/gpu.json")
    parser.add_argument(
        "--gpu-bundle",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="a bundle that was timed on that GPU; again for others",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON to keep")
    args = parser.parse_args(argv)
    peers = json.loads((RESULTS / "peers.json").read_text("utf-8"))
    rows: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for model, path in ((TEACHER, args.teacher), (STUDENT, args.student)):
        with Bundle.open(path) as bundle:
            rows += checks_of(CPU, model, bundle.manifest, measured_by_peers(peers, model), "peers.json")
            whole += whole_checks(CPU, model, bundle.manifest, whole_by_peers(peers, model), "peers.json")
    if args.gpu:
        results = kept = json.loads(args.gpu.read_text("utf-8"))
        if "bundles" in results:
            results = one_by_one(results)
        for path in args.gpu_bundle:
            with Bundle.open(path) as bundle:
                name, device = bundle.manifest.name, profile_of(results)
                rows += checks_of(device, name, bundle.manifest, measured_in(results, name), args.gpu.name)
                if "bundles" in kept:
                    whole += whole_checks(device, name, bundle.manifest, whole_on_gpu(kept, name), args.gpu.name)
    for row in rows:
        print(
            f"{row['device']:<14}{row['model']:<11}{row['stage']:<7}{row['variant']:<9}"
            f"{row['measured_ms']:>9.3g} ms, estimated {row['estimated_ms']:.3g}, {row['ratio']:.2f} times"
        )
    for row in whole:
        print(
            f"{row['device']:<14}{row['model']:<11}{row['figure']:<16}{row['measured']:>9.4g}, "
            f"estimated {row['estimated']:.4g}, {row['ratio']:.2f} times"
        )
    if args.output:
        data = {"format": FORMAT, "format_version": VERSION, "checks": rows, "whole": whole, "constants": constants()}
        write_atomic(args.output, (json.dumps(data, indent=1) + "\n").encode(), SCRIPT_FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
