"""A results file of `benchmarks.cpu.peers` as bars: ``python -m benchmarks.cpu.plot RESULTS.json -o FIGURE.svg``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.common.methods import OURS, OURS_ALONE
from benchmarks.common.results import MEASURED, STUDENT, TEACHER

matplotlib.use("Agg")
from matplotlib import pyplot

# Mid tones on a transparent ground: they stand out from white and from a dark page alike.
INK, PEER, TEACHER_OURS, STUDENT_OURS = "#7d8590", "#8b9bb4", "#4c8dff", "#2ea043"
PALE = 0.6
RATE = "shown_fps"
REAL_TIME = 60


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Frames a second shown at 60 fps, a bar a contender, whiskers from the slowest round to the fastest."""
    rows = [c for c in results["contenders"] if c["status"] == MEASURED]
    names = {role: model["name"] for role, model in results["models"].items()}
    with pyplot.rc_context({"svg.fonttype": "path", "svg.hashsalt": "t2v", "font.size": 9, "text.color": INK}):
        figure, axes = pyplot.subplots(figsize=(7.2, 0.6 + 0.27 * len(rows)))
        for place, row in enumerate(reversed(rows)):
            rate = row["figures"][RATE]
            median = rate["median"]
            ours = STUDENT_OURS if row["model"] == STUDENT else TEACHER_OURS
            axes.barh(
                place,
                median,
                height=0.72,
                color=ours if row["method"] in (OURS, OURS_ALONE) else PEER,
                alpha=PALE if row["method"] == OURS_ALONE else 1.0,
            )
            axes.errorbar(median, place, xerr=[[median - rate["min"]], [rate["max"] - median]], color=INK, lw=1)
            weight = "bold" if row["method"] == OURS else "normal"
            axes.annotate(
                f"{median:.0f}",
                (rate["max"], place),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                weight=weight,
            )
        axes.axvline(REAL_TIME, color=INK, lw=0.8, ls=":")
        axes.set_yticks(range(len(rows)), [f"{names[r['model']]}: {r['label']}" for r in reversed(rows)])
        for label, row in zip(axes.get_yticklabels(), reversed(rows)):
            label.set_weight("bold" if row["method"] == OURS else "normal")
        size = results["models"][TEACHER]
        axes.set_xlabel(
            f"frames a second, {size['width']}x{size['height']}, dotted: {REAL_TIME}; "
            f"{results['machine']['cores']} cores\n({results['machine']['cpu']})",
            color=INK,
        )
        axes.tick_params(colors=INK, length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(INK)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.plot", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text("utf-8")), options.output)


if __name__ == "__main__":
    main()
