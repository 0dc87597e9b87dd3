"""What `benchmarks.gpu.engines` and `benchmarks.gpu.peers` measured on one GPU, as one table.

    python -m benchmarks.gpu.summary engines.json peers.json -o benchmarks/results/gpu.json --check

Bundles are matched with checkpoints by name. Frames a second are of a stream at the model's own rate, batch 1, each
frame copied back. The matrix share is the renderer's rate of operations over the chip's best matrix product in that
precision. The copy share is the rate of the frames over the chip's best pinned copy.

--check exits with 3 if a demand is not kept. Ours must be 12 times as fast as PyTorch eager in FP16, and twice as fast
as PyTorch with CUDA graphs in FP16. A caption's first frame must come within 5 ms. Frames made ahead must be those made
one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from benchmarks.common.results import MEASURED, Demand
from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE

OURS = "t2v-edge"
EAGER, GRAPHS = "torch-eager-fp16", "torch-graph-fp16"
EAGER_RATIO, GRAPHS_RATIO, FIRST_FRAME_MS = 12.0, 2.0, 5.0
ALONE = ("fp32", "fp16", "int8")
CHANNELS = 3


@dataclass(frozen=True)
class Row:
    """A model in one method: `fps` end to end, `render_ms` of the renderer alone, shares of the ceilings from 0 to 1.

    `method`: ``t2v-edge`` for the chosen engines, ``t2v-edge VARIANT`` for one precision, else the peer's.
    """

    model: str
    method: str
    precision: str
    fps: float
    render_ms: Optional[float]
    first_frame_ms: Optional[float]
    idle_share: Optional[float]
    matrix_share: Optional[float]
    copy_share: Optional[float]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def peer_rows(peers: Mapping[str, Any]) -> list[Row]:
    """What was measured of PyTorch and ONNX Runtime."""
    rows = []
    for found in peers["contenders"]:
        if found["status"] != MEASURED or "fps" not in found["streams"].get("1", {}):
            continue
        stream = found["streams"]["1"]
        rows.append(
            _row(
                peers,
                found["model"],
                found["method"],
                found["precision"],
                stream["fps"],
                found["stages"]["render"]["gpu_ms"]["median"],
                found["first_frame_ms"]["median"],
                stream.get("idle_share"),
            )
        )
    return rows


def engine_rows(engines: Mapping[str, Any], peers: Mapping[str, Any]) -> list[Row]:
    """Our engines: the chosen ones by the faster kind of stream, and each precision alone."""
    rows = []
    for model, parts in engines["bundles"].items():
        streams = [parts[name] for name in ("stream 1", "stream 1 ahead") if "fps" in parts.get(name, {})]
        if streams:
            best = max(streams, key=lambda stream: float(stream["fps"]))
            chosen = parts["build 1"]["stages"]["render"]
            first = parts.get("captions", {}).get("first_frame_ms", {}).get("p50")
            rows.append(
                _row(
                    peers,
                    model,
                    OURS,
                    chosen["variant"],
                    best["fps"],
                    _median(chosen, chosen["variant"]),
                    first,
                    best["gpu_idle_share"],
                )
            )
        for variant in ALONE:
            stream = parts.get(f"stream {variant}", {})
            if "fps" in stream and stream["variants"]["render"] == variant:
                built = parts[f"build {variant}"]["stages"]["render"]
                rows.append(
                    _row(
                        peers,
                        model,
                        f"{OURS} {variant}",
                        variant,
                        stream["fps"],
                        _median(built, variant),
                        None,
                        stream["gpu_idle_share"],
                    )
                )
    return rows


def _median(stage: Mapping[str, Any], variant: str) -> Optional[float]:
    return next((tried["median_ms"] for tried in stage["tried"] if tried["variant"] == variant), None)


def _row(
    peers: Mapping[str, Any],
    model: str,
    method: str,
    precision: str,
    fps: float,
    render_ms: Optional[float],
    first_ms: Optional[float],
    idle: Optional[float],
) -> Row:
    known, ceilings = peers["models"].get(model), peers["ceilings"]
    matrix = copy = None
    if known is not None:
        best = ceilings["matrix"].get("int8" if precision.startswith("int8") else precision, {}).get("best")
        if best and render_ms:
            matrix = 2 * known["render_gmac"] / render_ms / best  # 10^9 a millisecond are 10^12 a second
        copy = fps * known["width"] * known["height"] * CHANNELS / 1e9 / ceilings["pinned_gb_s"]
    return Row(model, method, precision, fps, render_ms, first_ms, idle, matrix, copy)


def demands(rows: list[Row]) -> list[Demand]:
    """What is asked of ours, model by model; what was not measured is not kept."""
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        of = {row.method: row for row in rows if row.model == model}
        ours = of.get(OURS)
        for method, wanted in ((EAGER, EAGER_RATIO), (GRAPHS, GRAPHS_RATIO)):
            ratio = ours.fps / of[method].fps if ours and method in of else math.nan
            found.append(Demand(f"{model}: frames a second over {method}", wanted, ratio))
        first = ours.first_frame_ms if ours else None
        within = FIRST_FRAME_MS / first if first else math.nan
        found.append(Demand(f"{model}: {FIRST_FRAME_MS:g} ms over caption to first frame", 1.0, within))
    return found


def sameness(engines: Mapping[str, Any]) -> list[Demand]:
    """That frames made ahead are those made one by one, model by model."""
    found = []
    for model, parts in engines["bundles"].items():
        same = parts.get("same 1", {})
        share = 1 - same["not_the_same"] / same["frames"] if same.get("counts_agree") else math.nan
        found.append(Demand(f"{model}: share of frames made ahead that are those made one by one", 1.0, share))
    return found


def to_markdown(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "| model | method | frames a second | renderer, ms | first frame, ms | GPU idle | of the matrix peak |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row.model, -row.fps)):
        shown = [
            f"{row.fps:,.0f}",
            _shown(row.render_ms, "{:.3f}"),
            _shown(row.first_frame_ms, "{:.2f}"),
            _shown(row.idle_share, "{:.0%}"),
            _shown(row.matrix_share, "{:.1%}"),
        ]
        method = row.method if row.method != OURS else f"**{OURS}**, {row.precision} renderer chosen"
        lines.append(f"| {row.model} | {method} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(value: Optional[float], form: str) -> str:
    return "–" if value is None else form.format(value)


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.summary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("engines", type=Path, help="what benchmarks.gpu.engines wrote")
    parser.add_argument("peers", type=Path, help="what benchmarks.gpu.peers wrote, on the same GPU")
    parser.add_argument("--check", action="store_true", help="exit with 3 where a demand is not kept")
    parser.add_argument("-o", "--output", type=Path, help="the rows and demands as JSON")
    args = parser.parse_args(arguments)
    engines, peers = (json.loads(path.read_text("utf-8")) for path in (args.engines, args.peers))
    ours = next(
        (
            part["gpu"]["name"]
            for parts in engines["bundles"].values()
            for part in parts.values()
            if isinstance(part, dict) and "gpu" in part
        ),
        None,
    )
    if ours != peers["gpu"]["name"]:
        print(
            f"benchmarks.gpu.summary: engines ran on {ours}, peers on {peers['gpu']['name']}; measure both on one GPU",
            file=sys.stderr,
        )
        return 2
    rows = [*engine_rows(engines, peers), *peer_rows(peers)]
    asked = [*demands(rows), *sameness(engines)]
    print(to_markdown(rows))
    for demand in asked:
        print(f"{'kept  ' if demand.kept else 'MISSED'} {demand.name}: {demand.found:.2f}, wanted {demand.wanted:g}")
    if args.output is not None:
        data = {
            "format": "t2v-gpu-summary",
            "format_version": 1,
            "gpu": peers["gpu"],
            "ceilings": peers["ceilings"],
            "versions": {"engines": engines["versions"], "peers": peers["versions"]},
            "rows": [row.to_json() for row in rows],
            "demands": [demand.to_json() for demand in asked],
        }
        write_atomic(args.output, (json.dumps(data, indent=1) + "\n").encode(), SCRIPT_FILE)
    return 3 if args.check and not all(demand.kept for demand in asked) else 0


if __name__ == "__main__":
    raise SystemExit(main())
