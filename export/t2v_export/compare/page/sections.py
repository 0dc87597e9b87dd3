"""The sections of the page, one a figure: each says in a sentence what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from t2v_edge.spec import STAGES
from t2v_export.compare import clips
from t2v_export.compare.measures import cost
from t2v_export.compare.page.markup import (
    NONE,
    count,
    figure,
    interval,
    megabytes,
    percent,
    plain,
    section,
    signed,
    table,
    tiny,
)
from t2v_export.compare.page.svg import Interval, Series, interval_plot, line_plot, scatter_plot
from t2v_export.compare.report import pair_of
from t2v_export.evaluate.lanes import AGAINST, EXACT

Json = Mapping[str, Any]


class MixNames:
    """What lanes are called and coloured on the page."""

    def __init__(self, report: Json) -> None:
        self.lanes = tuple(report["lanes"])
        self._against = report["against"]
        self.default = report["default"]["lane"]

    def text(self, lane: str) -> str:
        if lane == AGAINST:
            return f"{self._against} (FP32)"
        return f"{lane} (default mix)" if lane == self.default != "default" else lane

    def style(self, lane: str) -> str:
        return f"s{self.lanes.index(lane) % 8}"

    def mark(self, lane: str) -> str:
        """The name with its colour, as HTML."""
        return f'<i class="{self.style(lane)}"></i>{escape(self.text(lane))}'

    def pair(self, pair: Json) -> str:
        """The candidate, and where more than one baseline is about, what it is against."""
        versus = f" against {escape(self.text(pair['baseline']))}" if self._against else ""
        return self.mark(pair["candidate"]) + versus

    def key(self) -> str:
        return f'<div class="key">{"".join(f"<span>{self.mark(lane)}</span>" for lane in self.lanes)}</div>'


def compared(report: Json, names: MixNames) -> str:
    """Which graph each lane runs, and what it weighs."""
    rows = []
    for name, lane in report["lanes"].items():
        stages = [f"{escape(lane['variants'][s])}{' *' if s in lane['filled_with_fp32'] else ''}" for s in STAGES]
        total, exact = lane["bytes"]["total"], report["lanes"][EXACT]["bytes"]["total"]
        rows.append(
            [
                names.mark(name),
                *stages,
                *(megabytes(lane["bytes"][s]) for s in (*STAGES, "total")),
                plain(exact / total, 2, "×"),
                count(lane["macs"]["render"]),
                count(lane["macs"]["total"]),
                count(lane["parameters"]["total"]),
            ]
        )
    head = [
        "",
        *STAGES,
        *(f"{s}<br>MB" for s in STAGES),
        "in all<br>MB",
        "smaller<br>than FP32",
        "render<br>MACs",
        "all<br>MACs",
        "param-<br>eters",
    ]
    inside = table(head, rows)
    if any(lane["filled_with_fp32"] for lane in report["lanes"].values()):
        inside += '<p class="small">* The variant has no graph of this stage; FP32 stands in for it.</p>'
    uncounted = [
        f"{name}: {', '.join(lane['uncounted'])}" for name, lane in report["lanes"].items() if "uncounted" in lane
    ]
    if uncounted:
        inside += f'<p class="small">MACs leave out {escape("; ".join(uncounted))}.</p>'
    return section(
        "compared",
        "What was compared",
        "Each row is one way to run the three stages; all of them play the same captions, seeds and noise. "
        "Megabytes are of the graphs' files, MACs of one run of each stage.",
        inside,
    )


def accuracy(report: Json, names: MixNames) -> str:
    """Accuracy by attribute, and paired differences."""
    judged = [name for name, lane in report["lanes"].items() if "accuracy" in lane]
    if not judged:
        return ""
    slots = [s for s, entry in report["lanes"][EXACT]["accuracy"].items() if entry["count"]]
    rows = [[names.mark(name), *(percent(report["lanes"][name]["accuracy"][s]) for s in slots)] for name in judged]
    rows.append(
        [
            "chance",
            *(
                plain(100 * report["lanes"][EXACT]["chance"][s], 1) if s in report["lanes"][EXACT]["chance"] else NONE
                for s in slots
            ),
        ]
    )
    told = {"all": "all, together"}
    named = {s: report["lanes"][EXACT]["accuracy"][s]["count"] for s in slots}
    head = ["percent right", *(f"{escape(told.get(s, s))}<br>n = {n}" for s, n in named.items())]
    pairs = [p for p in report["pairs"] if "accuracy" in p]
    tests = [[names.pair(p), *_test_cells(p["accuracy"]["all"])] for p in pairs]
    inside = table(head, rows) + table(
        [
            "all named attributes together",
            "difference, points<br>(95 % interval)",
            "only it<br>right",
            "only baseline<br>right",
            "McNemar<br>p",
        ],
        tests,
    )
    plots = []
    for baseline in dict.fromkeys(p["baseline"] for p in pairs):
        groups = [
            (
                told.get(s, s),
                [
                    Interval(
                        f"{names.text(p['candidate'])}: {interval(e)}",
                        e["low"],
                        e["points"],
                        e["high"],
                        names.style(p["candidate"]),
                    )
                    for p in pairs
                    if p["baseline"] == baseline and (e := p["accuracy"].get(s))
                ],
            )
            for s in slots
        ]
        plots.append(
            figure(
                f"Difference from {names.text(baseline)}, 95 % intervals",
                interval_plot(groups, "percentage points", "accuracy differences"),
            )
        )
    inside += f'<div class="plots">{"".join(plots)}</div>' + names.key()
    return section(
        "accuracy",
        "Are captions still read right?",
        "An independent video classifier reads from a video what its caption named; the difference counts "
        "caption by caption, its interval is a paired bootstrap over captions, and McNemar's exact p says "
        "how likely such a split is between equally good models.",
        inside,
    )


def _test_cells(entry: Json) -> list[str]:
    return [interval(entry), str(entry["gained"]), str(entry["lost"]), tiny(entry["p"]) if entry["p"] < 1 else "1"]


def frames(report: Json, names: MixNames) -> str:
    """PSNR and SSIM, render alone and whole stream."""
    rows = []
    for pair in report["pairs"]:
        for way, label in ((clips.ALONE, "render alone"), (clips.WHOLE, "whole stream")):
            figures = pair["frames"].get(way)
            if figures:
                rows.append(
                    [
                        names.pair(pair),
                        label,
                        *(plain(figures["psnr_db"][k], 1) for k in ("mean", "p5", "min")),
                        *(plain(figures["ssim"][k], 4) for k in ("mean", "p5", "min")),
                        plain(figures["mean_abs_error"], 3) if figures["mean_abs_error"] else "0",
                        f"{figures['equal_frames']} of {figures['frames']}",
                    ]
                )
    if not rows:
        return ""
    head = [
        "",
        "",
        "PSNR dB<br>mean",
        "<br>5th pct",
        "<br>lowest",
        "SSIM<br>mean",
        "<br>5th pct",
        "<br>lowest",
        "error<br>levels",
        "equal<br>frames",
    ]
    fps = report["video"]["fps"]
    plots = []
    for way, label in ((clips.ALONE, "Render alone"), (clips.WHOLE, "Whole stream")):
        series = [
            Series(
                names.text(p["candidate"]),
                [(i / fps, v) for i, v in enumerate(f["psnr_db_by_frame"])],
                names.style(p["candidate"]),
            )
            for p in report["pairs"]
            if p["baseline"] == EXACT and (f := p["frames"].get(way))
        ]
        if series:
            plot = line_plot(series, "seconds", "PSNR, dB", title=label)
            plots.append(figure(f"{label}: mean PSNR over the clip", plot))
    inside = table(head, rows) + f'<div class="plots">{"".join(plots)}</div>' + names.key()
    return section(
        "frames",
        "How near are the pixels?",
        "Render alone draws the baseline's own motion, so only the renderer differs; whole stream runs a "
        "variant's own text, motion and renderer, where a small difference of the condition may grow into "
        "another, equally good movement. Equal frames count as 100 dB, which is also the most.",
        inside,
    )


def temporal(report: Json, names: MixNames) -> str:
    """Warping error and flicker."""
    rows = [
        [
            names.mark(n),
            "whole stream",
            plain(v["temporal"]["warping_error"], 3),
            NONE,
            plain(v["temporal"]["flicker"], 3),
            NONE,
        ]
        for n, v in report["lanes"].items()
        if "temporal" in v and n in (EXACT, AGAINST)
    ]
    if not rows:
        return ""
    for pair in report["pairs"]:
        for way, label in ((clips.ALONE, "render alone"), (clips.WHOLE, "whole stream")):
            found = pair["temporal"].get(way)
            if found:
                rows.append(
                    [
                        names.pair(pair),
                        label,
                        plain(found["warping_error"], 3),
                        signed(found["warping_error_change_percent"], 1, " %"),
                        plain(found["flicker"], 3),
                        signed(found["flicker_change_percent"], 1, " %"),
                    ]
                )
    inside = table(
        [
            "",
            "",
            "warping error<br>levels of 255",
            "against<br>baseline",
            "flicker<br>levels of 255",
            "against<br>baseline",
        ],
        rows,
    )
    return section(
        "temporal",
        "Do frames hang together?",
        "Warping error is what of a frame, moved along the optical flow, does not fit the next; "
        "flicker is how much pixels change where nothing moves. Render alone follows the baseline's flow, "
        "the whole stream its own.",
        inside,
    )


def drift(report: Json, names: MixNames) -> str:
    """Curves of state and motion error, their windows, and statistics that outlive chaos."""
    pairs = [p for p in report["pairs"] if "drift" in p]
    if not pairs:
        return ""
    plots = []
    for what, label in (("state", "Recurrent state"), ("motion", "Motion")):
        series = [
            Series(names.text(p["candidate"]), list(zip(c["steps"], c["relative_error"])), names.style(p["candidate"]))
            for p in pairs
            if p["baseline"] == EXACT and (c := p["drift"].get(what))
        ]
        if series:
            zero = all(v == 0 for s in series for _, v in s.points)
            plots.append(
                figure(
                    f"{label}: relative error against FP32",
                    line_plot(
                        series, "base steps", "relative error", log_x=True, log_y=not zero, title=f"{label} drift"
                    ),
                )
            )
    rows = [_drift_row(names, p) for p in pairs]
    curves = [curve for p in pairs if (curve := p["drift"].get("state") or p["drift"].get("motion"))]
    windows = curves[0]["windows"] if curves else {"early": ["early"], "late": ["late"]}
    early, late = ("–".join(map(str, bounds)) for bounds in windows.values())
    head = [
        "",
        f"state error<br>steps {early}",
        f"<br>steps {late}",
        "late /<br>early",
        f"motion error<br>steps {late}",
        "motion<br>speed",
        "motion<br>spread",
    ]
    inside = f'<div class="plots">{"".join(plots)}</div>' + names.key() + table(head, rows)
    steps = sorted({int(s) for p in pairs for s in p["drift"].get("psnr_db_after_steps", {})})
    if steps:
        inside += table(
            ["PSNR of the whole stream, dB", *(f"after {s}" for s in steps)],
            [
                [names.pair(p), *(plain(p["drift"]["psnr_db_after_steps"].get(str(s)), 1) for s in steps)]
                for p in pairs
                if "psnr_db_after_steps" in p["drift"]
            ],
        )
    return section(
        "drift",
        f"Does error grow over {report['played']['drift_steps']:,} steps?".replace(",", " "),
        "From the same seed each lane runs freely; error is the distance of all recurrent states, or of "
        "motion, relative to the baseline's. A ratio late to early near 1 means that it has stopped "
        "growing. Chaotic runs part for good, but speed and spread of motion must stay the same.",
        inside,
    )


def _drift_row(names: MixNames, pair: Json) -> list[str]:
    state, motion = (pair["drift"].get(what, {}) for what in ("state", "motion"))
    return [
        names.pair(pair),
        tiny(state.get("early")),
        tiny(state.get("late")),
        plain(state.get("late_to_early"), 2),
        tiny(motion.get("late")),
        signed(pair["drift"]["speed_change_percent"], 2, " %"),
        signed(pair["drift"]["spread_change_percent"], 2, " %"),
    ]


def distances(report: Json, names: MixNames) -> str:
    """Frechet distances beside their yardstick."""
    pairs = [p for p in report["pairs"] if "frechet" in p]
    if not pairs:
        return ""
    rows = [[names.pair(p), tiny(p["frechet"]) if p["frechet"] < 0.01 else plain(p["frechet"], 3)] for p in pairs]
    rows.append(["FP32 against itself with other seeds (yardstick)", plain(report["frechet_yardstick"], 3)])
    n = report["played"]["captions"]
    return section(
        "distance",
        "Are the videos of one kind?",
        f"In-domain Frechet distance (evaluator features): how far apart the features of {n} videos lie "
        "as Gaussians. The yardstick is what other seeds alone make. It must never be compared with "
        "published FIDs, nor with distances from another number of captions.",
        table(["in-domain Frechet distance", f"n = {n}"], rows),
    )


def speed(report: Json, names: MixNames) -> str:
    """Latency and memory, and what quality costs."""
    lanes = report["lanes"]
    timed = [name for name, lane in lanes.items() if "latency_ms" in lane]
    inside = ""
    if timed:
        parts = (*STAGES, cost.FRAME, cost.FIRST)
        labels = [*STAGES, "frame", "caption to<br>first frame"]
        rows = [
            [
                names.mark(n),
                *(f"{plain(lanes[n]['latency_ms'][p]['p50'], 2)}" for p in parts),
                *(plain(lanes[n]["latency_ms"][cost.FRAME][q], 2) for q in ("p95", "p99")),
                plain(lanes[n]["peak_memory_bytes"] / 1e6, 0),
            ]
            for n in timed
        ]
        runs = lanes[timed[0]]["latency_ms"][cost.FRAME]["runs"]
        inside += table(["median ms", *labels, "frame<br>p95", "frame<br>p99", "peak<br>MB"], rows)
        inside += (
            f'<p class="small">{runs} turns, the lanes one after the other in each, on '
            f"{escape(_machine(report))}. Frame is motion and render; peak is what a fresh process grows by "
            "while it opens the lane and plays two seconds.</p>"
        )
    inside += _pareto(report, names, bool(timed))
    return (
        section(
            "cost",
            "What does it cost?",
            "Times are of this machine alone and of its load at the time; up and to the left is better in the plot.",
            inside,
        )
        if inside
        else ""
    )


def _pareto(report: Json, names: MixNames, timed: bool) -> str:
    lanes = report["lanes"]
    judged = "accuracy" in lanes[EXACT]
    points = []
    for name, lane in lanes.items():
        x = lane["latency_ms"][cost.FRAME]["p50"] if timed else lane["bytes"]["total"] / 1e6
        pair = pair_of(report, name, EXACT)
        alone = pair["frames"].get(clips.ALONE) if pair else None
        y = 100 * lane["accuracy"]["all"]["rate"] if judged else alone["psnr_db"]["mean"] if alone else None
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
