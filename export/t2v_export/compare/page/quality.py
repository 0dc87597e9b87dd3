"""Sections of the page about quality: accuracy, frames, temporal quality, drift, and distances."""

from __future__ import annotations

from html import escape

from t2v_export.compare import clips
from t2v_export.compare.page.markup import (
    NONE,
    Json,
    MixNames,
    figure,
    interval,
    percent,
    plain,
    section,
    signed,
    table,
    tiny,
)
from t2v_export.compare.page.svg import Interval, Series, interval_plot, line_plot
from t2v_export.evaluate.mixes import AGAINST, EXACT


def accuracy(report: Json, names: MixNames) -> str:
    """Accuracy by attribute, and paired differences."""
    judged = [name for name, mix in report["lanes"].items() if "accuracy" in mix]
    if not judged:
        return ""
    slots = [s for s, entry in report["lanes"][EXACT]["accuracy"].items() if entry["count"]]
    rows = [[names.mark(name), *(percent(report["lanes"][name]["accuracy"][s]) for s in slots)] for name in judged]
    chance = report["lanes"][EXACT]["chance"]
    rows.append(["chance", *(plain(100 * chance[s], 1) if s in chance else NONE for s in slots)])
    labels = {"all": "all, together"}
    named = {s: report["lanes"][EXACT]["accuracy"][s]["count"] for s in slots}
    head = ["percent right", *(f"{escape(labels.get(s, s))}<br>n = {n}" for s, n in named.items())]
    pairs = [p for p in report["pairs"] if "accuracy" in p]
    tests = [[names.pair(p), *_test_cells(p["accuracy"]["all"])] for p in pairs]
    together = (
        "all named attributes together|difference, points<br>(95 % interval)|only it<br>right|only baseline<br>right|"
        "McNemar<br>p"
    )
    inside = table(head, rows) + table(together.split("|"), tests)
    plots = []
    for baseline in dict.fromkeys(p["baseline"] for p in pairs):
        groups = [
            (
                labels.get(s, s),
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
        "An independent video classifier reads from a video what its caption named. The difference counts caption by "
        "caption. Its interval is a paired bootstrap over captions. McNemar's exact p is the chance of such a split "
        "between equally good models.",
        inside,
    )


def _test_cells(entry: Json) -> list[str]:
    return [interval(entry), str(entry["gained"]), str(entry["lost"]), tiny(entry["p"]) if entry["p"] < 1 else "1"]


def frames(report: Json, names: MixNames) -> str:
    """PSNR and SSIM, render alone and whole stream."""
    rows = []
    for pair in report["pairs"]:
        for mode, label in ((clips.ALONE, "render alone"), (clips.WHOLE, "whole stream")):
            figures = pair["frames"].get(mode)
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
    low = "<br>5th pct|<br>lowest"
    head = f"||PSNR dB<br>mean|{low}|SSIM<br>mean|{low}|error<br>levels|equal<br>frames".split("|")
    fps = report["video"]["fps"]
    plots = []
    for mode, label in ((clips.ALONE, "Render alone"), (clips.WHOLE, "Whole stream")):
        series = [
            Series(
                names.text(p["candidate"]),
                [(i / fps, v) for i, v in enumerate(f["psnr_db_by_frame"])],
                names.style(p["candidate"]),
            )
            for p in report["pairs"]
            if p["baseline"] == EXACT and (f := p["frames"].get(mode))
        ]
        if series:
            plot = line_plot(series, "seconds", "PSNR, dB", title=label)
            plots.append(figure(f"{label}: mean PSNR over the clip", plot))
    inside = table(head, rows) + f'<div class="plots">{"".join(plots)}</div>' + names.key()
    return section(
        "frames",
        "How near are the pixels?",
        "Render alone draws the baseline's own motion, so only the renderer differs. Whole stream runs a variant's own "
        "text, motion and renderer: a small difference of the condition may grow into another, equally good movement. "
        "Equal frames count as 100 dB, which is also the most.",
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
        for mode, label in ((clips.ALONE, "render alone"), (clips.WHOLE, "whole stream")):
            found = pair["temporal"].get(mode)
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
    change = "<br>levels of 255|against<br>baseline"
    inside = table(f"||warping error{change}|flicker{change}".split("|"), rows)
    return section(
        "temporal",
        "Do frames hang together?",
        "Warping error: how much a frame, moved along the optical flow, differs from the next one. Flicker: how much "
        "pixels change where nothing moves. Render alone follows the baseline's flow, the whole stream its own.",
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
    head = (
        f"|state error<br>steps {early}|<br>steps {late}|late /<br>early|motion error<br>steps {late}|"
        "motion<br>speed|motion<br>spread"
    ).split("|")
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
        "Each mix runs freely from the same seed. Error is the distance of all recurrent states, or of motion, "
        "relative to the baseline's. A ratio late to early near 1 means that it has stopped growing. Chaotic runs part "
        "for good, but speed and spread of motion must stay the same.",
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
    """Frechet distances and their yardstick."""
    pairs = [p for p in report["pairs"] if "frechet" in p]
    if not pairs:
        return ""
    rows = [[names.pair(p), tiny(p["frechet"]) if p["frechet"] < 0.01 else plain(p["frechet"], 3)] for p in pairs]
    rows.append(["FP32 against itself with other seeds (yardstick)", plain(report["frechet_yardstick"], 3)])
    n = report["played"]["captions"]
    return section(
        "distance",
        "Are the videos of one kind?",
        f"In-domain Frechet distance: how far apart the evaluator's features of {n} videos lie as Gaussians. The "
        "yardstick is the distance that other seeds alone make. It must never be compared with published "
        "FIDs, or with distances from another number of captions.",
        table(["in-domain Frechet distance", f"n = {n}"], rows),
    )
