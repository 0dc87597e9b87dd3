"""The report as one HTML file: inline styles, plots and pictures, nothing from a network."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from t2v_export.compare import clips
from t2v_export.compare.comparison import Comparison
from t2v_export.compare.measures import cost
from t2v_export.compare.page import costs, quality
from t2v_export.compare.page.markup import Json, MixNames, plain, section, signed, tiles
from t2v_export.compare.report import pair_of, sentence_of
from t2v_export.evaluate.mixes import AGAINST, EXACT

STYLE = Path(__file__).with_name("page.css")


def make_page(report: Json, measured: Comparison) -> str:
    """The whole page of a report; pictures come from what was `measured`. The same input gives the same text."""
    names = MixNames(report)
    title = f"{report['bundle']}: {_headline(report, names)}"
    parts = [
        _verdict(report, names),
        costs.compared(report, names),
        quality.accuracy(report, names),
        _side_by_side(measured, names),
        quality.frames(report, names),
        quality.temporal(report, names),
        quality.drift(report, names),
        quality.distances(report, names),
        costs.speed(report, names),
        costs.layers(report),
        _method(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{STYLE.read_text('utf-8')}</style></head>\n"
        "<body><main>\n" + "\n".join(part for part in parts if part) + "\n</main></body></html>\n"
    )


def _headline(report: Json, names: MixNames) -> str:
    """One sentence: how near to FP32 the judged mix is, and what it saves."""
    mix = report["budget"]["lane"]
    subject = "The default mix" if mix == names.default else f"Variant {mix}"
    pair = pair_of(report, mix, EXACT)
    if pair is None:
        return f"{subject} is FP32 itself"
    if is_equal(pair):
        return f"{subject} is exactly FP32: not one pixel differs"
    if "accuracy" in pair:
        points = pair["accuracy"]["all"]["points"]
        near = (
            "is read right exactly as often as FP32"
            if points == 0
            else f"is read right {abs(points):.1f} points {'less' if points < 0 else 'more'} often than FP32"
        )
    else:
        near = f"draws frames at {pair['frames'][clips.ALONE]['psnr_db']['mean']:.1f} dB from FP32"
    return f"{subject} {near}{_savings(report, mix)}"


def _savings(report: Json, mix: str) -> str:
    mine, exact = report["lanes"][mix], report["lanes"][EXACT]
    gains = []
    times = exact["bytes"]["total"] / mine["bytes"]["total"]
    if times >= 1.05:
        gains.append(f"{times:.1f} times smaller")
    if "latency_ms" in mine:
        faster = exact["latency_ms"][cost.FRAME]["p50"] / mine["latency_ms"][cost.FRAME]["p50"]
        if faster >= 1.05:
            gains.append(f"{faster:.1f} times faster")
    return f" and is {' and '.join(gains)}" if gains else ""


def is_equal(pair: Json) -> bool:
    """Whether not a pixel, reading or state differs."""
    frames = pair["frames"].values()
    same = all(f["mean_abs_error"] == 0 and f["equal_frames"] == f["frames"] for f in frames)
    states = all(c["late"] == c["early"] == 0 for k in ("state", "motion") if (c := pair.get("drift", {}).get(k)))
    return bool(same and states and frames)


def _verdict(report: Json, names: MixNames) -> str:
    budget = report["budget"]
    label, style = (
        ("Measured; nothing was demanded", "")
        if not budget["demands"]
        else (("Within budget", "kept") if budget["kept"] else ("Not within budget", "broken"))
    )
    against = f" and against {names.text(AGAINST)}" if report["against"] else ""
    played = report["played"]
    demands = "".join(f"<li>{escape(sentence_of(d))}.</li>" for d in budget["demands"])
    parts = [
        f'<p class="kicker">t2v-edge compare · {escape(report["bundle"])} against its FP32{escape(against)}</p>',
        f"<h1>{escape(_headline(report, names))}</h1>",
        f'<span class="badge {style}">{label}</span>',
        f"<ul>{demands}</ul>" if demands else "",
    ]
    for baseline in (EXACT, AGAINST):
        pair = pair_of(report, budget["lane"], baseline)
        if pair:
            if report["against"]:
                parts.append(f"<h3>{escape(names.text(budget['lane']))} against {escape(names.text(baseline))}</h3>")
            parts.append(tiles(_tiles(report, pair)))
    parts.append(
        f'<p class="small">{played["captions"]} captions, {played["clips"]} clips of '
        f"{played['clip_seconds']:g} s, {played['drift_runs']} free runs, seed {played['seed']}, engine "
        f"{escape(played['engine'])}.</p>"
    )
    if report["absent"]:
        parts.append('<ul class="small">' + "".join(f"<li>{escape(s)}</li>" for s in report["absent"]) + "</ul>")
    return f"<header>{''.join(parts)}</header>"


def _tiles(report: Json, pair: Json) -> list[tuple[str, str]]:
    mine, other = report["lanes"][pair["candidate"]], report["lanes"][pair["baseline"]]
    found = []
    if "accuracy" in pair:
        entry = pair["accuracy"]["all"]
        found.append(
            (
                signed(entry["points"], 2, " pt"),
                f"all attributes right, 95 % {signed(entry['low'], 1)} to {signed(entry['high'], 1)}",
            )
        )
    for mode, label in ((clips.ALONE, "frames rendered alone"), (clips.WHOLE, "frames, whole stream")):
        if mode in pair["frames"]:
            psnr = pair["frames"][mode]["psnr_db"]
            found.append((plain(psnr["mean"], 1, " dB"), f"{label}; 5th percentile {psnr['p5']:.1f}"))
    change = (pair["temporal"].get(clips.ALONE) or pair["temporal"].get(clips.WHOLE) or {}).get(
        "warping_error_change_percent"
    )
    if change is not None:
        found.append((signed(change, 1, " %"), "warping error"))
    state = pair.get("drift", {}).get("state")
    if state:
        found.append((f"{state['late']:.2g}", "relative state error at the end of the free runs"))
    found.append((f"{other['bytes']['total'] / mine['bytes']['total']:.2f}×", "smaller"))
    if mine["macs"]["render"] != other["macs"]["render"] and mine["macs"]["render"]:
        found.append((f"{other['macs']['render'] / mine['macs']['render']:.1f}×", "fewer renderer MACs"))
    if "latency_ms" in mine:
        times = [side["latency_ms"][cost.FRAME]["p50"] for side in (other, mine)]
        found.append((f"{times[1]:.1f} ms", f"a frame, median; {times[0]:.1f} ms before"))
    return found


def _side_by_side(measured: Comparison, names: MixNames) -> str:
    """Frames of the baseline, of each candidate, and their amplified difference."""
    scenes = []
    default = measured.default
    pairs = [p for p in measured.setting.pairs if p.comparable.frames and p.baseline == EXACT]
    pairs += [
        p
        for p in measured.setting.pairs
        if p.comparable.frames and p.baseline == AGAINST and p.candidate in (EXACT, default)
    ]
    for clip in measured.clips:
        if not clip.pictures:
            continue
        strips = {(p.candidate, p.baseline): _strip(clip, p.candidate, p.baseline, names) for p in pairs}
        first = [text for (candidate, _), text in strips.items() if candidate in (default, EXACT)]
        rest = [text for (candidate, _), text in strips.items() if candidate not in (default, EXACT)]
        more = f"<details><summary>The other variants</summary>{''.join(rest)}</details>" if rest else ""
        scenes.append(
            f'<div class="scene"><h3>{escape(measured.setting.captions[clip.caption])}</h3>{"".join(first)}{more}</div>'
        )
    if not scenes or not pairs:
        return ""
    return section(
        "pictures",
        "Side by side",
        "The middle frame of a clip, whole stream: the baseline's, the variant's, and their absolute difference "
        f"{clips.AMPLIFIED} times amplified. Black is equal.",
        "".join(scenes),
    )


def _strip(clip: clips.Clip, candidate: str, baseline: str, names: MixNames) -> str:
    shown = [
        (names.text(baseline), clip.pictures[baseline, ""]),
        (names.text(candidate), clip.pictures[candidate, ""]),
        (f"difference × {clips.AMPLIFIED}", clip.pictures[candidate, baseline]),
    ]
    cells = "".join(
        f'<div><img alt="{escape(label, quote=True)}" src="data:image/jpeg;base64,'
        f'{base64.b64encode(data).decode()}"><span>{escape(label)}</span></div>'
        for label, data in shown
    )
    return f'<div class="strip">{cells}</div>'


def _method(report: Json) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    default = ", ".join(f"{stage} {variant}" for stage, variant in report["default"]["variants"].items())
    items = [
        f"Caption i was played with seed {report['played']['seed']} + i: start states and noises are the same in every "
        "mix. The same command gives the same figures, except times and memory.",
        f"The bundle's default mix is {default}.",
        f"Captions: SHA-256 {report['played']['captions_sha256'][:16]}.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}. Versions: {versions}.",
        "All figures are in report.json, next to this page. docs/comparing.md explains how each is made.",
    ]
    return section(
        "method",
        "How it was measured",
        "Anyone with the bundle can make this page again.",
        '<ul class="small">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>",
    )
