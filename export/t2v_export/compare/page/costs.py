"""Sections of the page about graphs: which were compared, what they cost, and which layers are sensitive."""

from __future__ import annotations

from html import escape
from typing import Any

from t2v_edge.spec import STAGES
from t2v_export.compare import clips
from t2v_export.compare.measures import cost
from t2v_export.compare.page.markup import Json, MixNames, count, figure, megabytes, plain, section, table
from t2v_export.compare.page.svg import scatter_plot
from t2v_export.compare.report import pair_of
from t2v_export.evaluate.mixes import EXACT


def compared(report: Json, names: MixNames) -> str:
    """The graphs of each mix, with their size."""
    rows = []
    for name, mix in report["lanes"].items():
        stages = [f"{escape(mix['variants'][s])}{' *' if s in mix['filled_with_fp32'] else ''}" for s in STAGES]
        total, exact = mix["bytes"]["total"], report["lanes"][EXACT]["bytes"]["total"]
        rows.append(
            [
                names.mark(name),
                *stages,
                *(megabytes(mix["bytes"][s]) for s in (*STAGES, "total")),
                plain(exact / total, 2, "×"),
                count(mix["macs"]["render"]),
                count(mix["macs"]["total"]),
                count(mix["parameters"]["total"]),
            ]
        )
    figures = "in all<br>MB|smaller<br>than FP32|render<br>MACs|all<br>MACs|param-<br>eters".split("|")
    inside = table(["", *STAGES, *(f"{s}<br>MB" for s in STAGES), *figures], rows)
    if any(mix["filled_with_fp32"] for mix in report["lanes"].values()):
        inside += '<p class="small">* The variant has no graph of this stage; FP32 stands in for it.</p>'
    uncounted = [
        f"{name}: {', '.join(mix['uncounted'])}" for name, mix in report["lanes"].items() if "uncounted" in mix
    ]
    if uncounted:
        inside += f'<p class="small">MACs leave out {escape("; ".join(uncounted))}.</p>'
    return section(
        "compared",
        "What was compared",
        "Each row is one way to run the three stages. All play the same captions, seeds and noise. Megabytes are of "
        "the graphs' files, MACs of one run of each stage.",
        inside,
    )


def speed(report: Json, names: MixNames) -> str:
    """Latency and memory, and what quality costs."""
    mixes = report["lanes"]
    timed = [name for name, mix in mixes.items() if "latency_ms" in mix]
    inside = ""
    if timed:
        parts = (*STAGES, cost.FRAME, cost.FIRST)
        labels = [*STAGES, "frame", "caption to<br>first frame"]
        rows = [
            [
                names.mark(n),
                *(f"{plain(mixes[n]['latency_ms'][p]['p50'], 2)}" for p in parts),
                *(plain(mixes[n]["latency_ms"][cost.FRAME][q], 2) for q in ("p95", "p99")),
                plain(mixes[n]["peak_memory_bytes"] / 1e6, 0),
            ]
            for n in timed
        ]
        runs = mixes[timed[0]]["latency_ms"][cost.FRAME]["runs"]
        inside += table(["median ms", *labels, "frame<br>p95", "frame<br>p99", "peak<br>MB"], rows)
        inside += (
            f'<p class="small">{runs} turns, the mixes one after the other in each, on '
            f"{escape(_machine(report))}. Frame is motion and render; peak is what a fresh process grows by "
            "while it opens the mix and plays two seconds.</p>"
        )
    inside += _pareto(report, names, bool(timed))
    return (
        section(
            "cost",
            "What does it cost?",
            "Times are of this machine under its load at the time. In the plot, up and to the left is better.",
            inside,
        )
        if inside
        else ""
    )


def _pareto(report: Json, names: MixNames, timed: bool) -> str:
    mixes = report["lanes"]
    judged = "accuracy" in mixes[EXACT]
    points = []
    for name, mix in mixes.items():
        x = mix["latency_ms"][cost.FRAME]["p50"] if timed else mix["bytes"]["total"] / 1e6
        pair = pair_of(report, name, EXACT)
        alone = pair["frames"].get(clips.ALONE) if pair else None
        y = 100 * mix["accuracy"]["all"]["rate"] if judged else alone["psnr_db"]["mean"] if alone else None
        if y is not None:
            points.append((names.text(name), x, y, names.style(name)))
    if not points:
        return ""
    x_label = "ms a frame, median" if timed else "megabytes of graphs"
    y_label = "all attributes right, %" if judged else "PSNR of frames rendered alone, dB"
    plot = scatter_plot(points, x_label, y_label, "Pareto plot", 100.0)
    return f'<div class="plots">{figure("Quality against cost", plot)}</div>'


def _machine(report: Json) -> str:
    return f"{report['machine']['cpu']} ({report['machine']['cores']} cores)"


def layers(report: Json) -> str:
    """Layers that stay in float32, and the most sensitive ones."""
    kept = [
        [escape(v), stage, f"<code>{escape(', '.join(names))}</code>"]
        for v, stages in report["kept_in_float32"].items()
        for stage, names in stages.items()
    ]
    inside = ""
    if kept:
        inside += table(["variant", "stage", "layers kept in float32, the most sensitive first"], kept)
    if report["sensitivity"]:
        for stage, rows in report["sensitivity"].items():
            columns = [k for k in rows[0] if k != "layer"]
            body = [[f"<code>{escape(r['layer'])}</code>", *(_cell(r.get(k)) for k in columns)] for r in rows[:15]]
            head = ["layer", *(escape(k.replace("_", " ")) for k in columns)]
            inside += f"<h3>{escape(stage)}</h3>" + table(head, body)
    else:
        inside += '<p class="small">The bundle carries no sensitivity analysis: layers are not ranked one by one.</p>'
    return section(
        "layers",
        "Which layers are sensitive?",
        "A layer that loses most in lower precision is the first to be kept in float32.",
        inside,
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else escape(str(value))
