"""Measure the reference model as its users meet it: captions through the runtime, read by the evaluator.

    python -m examples.reference.evaluate BUNDLE --checkpoint CKPT -n 1200 -o report.json --markdown table.md

It plays every held-out caption once on ONNX Runtime's CPU engine. Caption i has the seed SEED + i. Motion runs at its
base rate from the stream's start. One second of warm-up is not drawn. Then come the 16 frames at 8 fps that the
evaluator reads.

``--rollouts`` adds 1,000 free-running steps of every action, and caption switches while a stream runs. ``--update-card
FILE`` puts the tables between the model card's markers. ``--data`` measures the evaluator again on renders of held-out
real clips (needs torch), and compares rollouts with the data's speed. Without it, the figures in `evaluator.json` are
shown, which are of its training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from examples.reference.captions import Caption
from examples.reference.captions import load_heldout as captions_of
from examples.reference.measures import derangement, groups, percent, table_of
from examples.reference.play import Job, Studio, read_jobs
from examples.reference.rolling import measure_rollouts, measure_switches, rollout_tables
from t2v_edge.errors import T2VError, UsageError
from t2v_edge.util.files import write_atomic
from t2v_edge.util.machine import machine, versions
from t2v_edge.util.targets import SCRIPT_FILE
from t2v_export.evaluate.readings import UNNAMED, Readings

HELD_OUT = Path(__file__).resolve().parents[2] / "calibration" / "captions" / "heldout.jsonl"
MARKERS = ("<!-- measured: begin -->", "<!-- measured: end -->")
ROW_ALL = "all named, together"


def load_heldout(path: Path, count: int) -> list[Caption]:
    """The first `count` captions of a JSON-lines file; raises `UsageError` where it cannot give them."""
    try:
        captions = list(captions_of(path)[:count])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read captions from {path}: {error!r}; give --captions a JSON-lines file") from error
    if len(captions) < max(2, count):
        raise UsageError(f"{path} holds {len(captions)} captions, {count} were asked for; lower -n (2 at least)")
    return captions


def readings_of(captions: list[Caption], read: np.ndarray, slots: dict[str, tuple[str, ...]]) -> Readings:
    """Join what captions named with what was read (n, slots)."""
    named = [
        [values.index(c.slots[slot]) if slot in c.slots else UNNAMED for slot, values in slots.items()]
        for c in captions
    ]
    return Readings(tuple(slots), np.array(named), read)


def judge(captions: list[Caption], readings: Readings, seed: int) -> dict[str, Any]:
    """Accuracy of all captions, by language and by composition; the shuffled control and its chance levels."""
    language = np.array([c.language for c in captions])
    composed = np.array([c.composes for c in captions])
    parts = groups(
        readings,
        {
            "overall": np.ones(len(captions), bool),
            "english": language == "en",
            "chinese": language == "zh",
            "composition": composed,
            "phrasing": ~composed,
        },
    )
    order = derangement(len(captions), np.random.default_rng(seed))
    difference = {}
    if "english" in parts and "chinese" in parts:
        difference = {
            slot: round(100 * (parts["chinese"][slot]["rate"] - entry["rate"]), 2)
            for slot, entry in parts["english"].items()
            if entry["count"] and parts["chinese"][slot]["count"]
        }
    return {
        **parts,
        "chinese_minus_english_points": difference,
        "shuffled": readings.shuffled(order).accuracy(),
        "chance": readings.chance(),
    }


def accuracy_table(report: dict[str, Any]) -> str:
    """The Markdown table of accuracies, percent with 95 % Wilson intervals."""
    judged, real = report["captions"], report["real"]
    slots = [s for s in judged["overall"] if s != "all"]

    def column(entries: dict[str, Any] | None) -> Any:
        return lambda row: percent((entries or {}).get("all" if row == ROW_ALL else row))

    def chance(row: str) -> str:
        level = judged["chance"].get("all" if row == ROW_ALL else row)
        return f"{100 * level['expected']:.1f}" if level else "–"

    columns = {
        f"generated (n = {len_of(judged['overall'])})": column(judged["overall"]),
        "English": column(judged.get("english")),
        "Chinese": column(judged.get("chinese")),
        "unseen pairs": column(judged.get("composition")),
        "real held-out clips": column({**real.get("slots", {}), "all": real.get("all")}),
        "captions shuffled": column(judged["shuffled"]),
        "chance": chance,
    }
    return table_of(columns, [*slots, ROW_ALL])


def len_of(entries: dict[str, Any]) -> int:
    return int(entries["all"]["count"])


def to_markdown(report: dict[str, Any]) -> str:
    """The model card's section: tables and how they were made."""
    versions, machine = report["versions"], report["machine"]
    real = report["real"]
    lines = [
        "Percent read right by the evaluator, with 95 % Wilson intervals; each slot over the captions that name it. "
        "*Unseen pairs*: captions that name an action and a colour never named together in training. *Real*: the "
        f"evaluator on renders of {real.get('windows', 0)} windows of held-out motion capture "
        f"({sum(real.get('clips', {}).values())} clips of few performers). *Shuffled*: every caption judged by "
        "another caption's video; *chance* is what that must give.",
        "",
        accuracy_table(report),
        "",
    ]
    if "without_props" in real:
        lines += [
            f"On real clips drawn without props the evaluator reads the action right in "
            f"{percent(real['without_props']['action'])} %: ball, sword, gloves and sponge are strong cues.",
            "",
        ]
    if "rollouts" in report:
        lines += [rollout_tables(report), ""]
    lines.append(
        f"Bundle `{report['bundle']}`, variant {report['variant']}, seed {report['seed']}, {report['seconds']:.0f} s "
        f"on {machine['cpu']} ({machine['cores']} cores); onnxruntime {versions['onnxruntime']}, "
        f"numpy {versions['numpy']}, Python {versions['python']}. Made by `python -m examples.reference.evaluate`."
    )
    return "\n".join(lines) + "\n"


def update_card(card: Path, text: str) -> None:
    """Replace what stands between the model card's markers; raises `UsageError` where they are missing."""
    old = card.read_text("utf-8")
    before, begin, rest = old.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not begin or not end:
        raise UsageError(f"{card} lacks the lines {MARKERS[0]} and {MARKERS[1]}: put them where the table shall stand")
    write_atomic(card, f"{before}{begin}\n{text}{end}{after}".encode(), SCRIPT_FILE)


def real_clips(evaluator: Path, described: dict[str, Any], data: Path | None) -> dict[str, Any]:
    """The evaluator's accuracy on real clips: as kept at its training, or measured again with `data` (needs torch)."""
    if data is None:
        return dict(described.get("validation", {}))
    import torch

    from examples.reference.evaluator import load_evaluator
    from examples.reference.motion_data import load_clips
    from examples.reference.train_evaluator import VideoRenderer, validate

    clips = [clip for clip in load_clips(data) if clip.split != "train"]
    windows = max(1, described.get("validation", {}).get("windows", 1200) // len(described["slots"]["action"]))
    return validate(load_evaluator(evaluator), clips, VideoRenderer(torch.device("cpu")), windows, 0)


def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    """Run what the command line asks for and return the report."""
    began = time.monotonic()
    studio = Studio(given.bundle, given.checkpoint / "evaluator", given.variant)
    described = studio.describe()
    slots = {slot: tuple(values) for slot, values in described["slots"].items()}
    captions = load_heldout(given.captions, given.count)
    quiet = not sys.stderr.isatty()
    jobs = [Job(((0, caption.text),), given.seed + i) for i, caption in enumerate(captions)]
    read = np.array(list(tqdm(read_jobs(studio, jobs, given.processes), "captions", len(jobs), disable=quiet)))
    report = {
        "bundle": given.bundle.name,
        "variant": given.variant or "default",
        "seed": given.seed,
        "machine": machine(),
        "versions": versions("onnxruntime"),
        "captions": judge(captions, readings_of(captions, read, slots), given.seed),
        "real": real_clips(given.checkpoint / "evaluator", described, given.data if given.remeasure else None),
        "videos": [
            {**c.to_json(), "seed": job.seed, "read": [values[i] for values, i in zip(slots.values(), row)]}
            for c, job, row in zip(captions, jobs, read.tolist())
        ],
    }
    if given.rollouts:
        report["rollouts"] = measure_rollouts(studio, given.steps, given.streams, given.seed, given.data, quiet)
        report["switches"] = measure_switches(studio, given.seed, given.processes, quiet)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint whose evaluator/ judges")
    parser.add_argument("--captions", type=Path, default=HELD_OUT, help="JSON lines: text, language, slots")
    parser.add_argument("-n", "--count", type=int, default=1200, help="captions to play (1200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", help="the bundle's variant (its default)")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 2), help="one thread each")
    parser.add_argument("--data", type=Path, help="motion data, for --remeasure and the speeds of --rollouts")
    parser.add_argument("--remeasure", action="store_true", help="measure the evaluator on real clips again (torch)")
    parser.add_argument("--rollouts", action="store_true", help="free-running steps and caption switches too")
    parser.add_argument("--steps", type=int, default=1000, help="base steps of a rollout (1000)")
    parser.add_argument("--streams", type=int, default=16, help="rollouts of each action (16)")
    parser.add_argument("-o", "--output", type=Path, help="the report as JSON")
    parser.add_argument("--markdown", type=Path, help="the tables")
    parser.add_argument("--update-card", type=Path, help="a model card with the markers of the table")
    parser.add_argument("--json", action="store_true", help="print the report, without the single videos")
    given = parser.parse_args(arguments)
    if (given.remeasure or given.rollouts) and given.data is None:
        parser.error("--remeasure and --rollouts compare with the motion data: give --data DIR")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    try:
        report = evaluate(given)
        text = to_markdown(report)
        if given.output:
            write_atomic(given.output, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode(), SCRIPT_FILE)
        if given.markdown:
            write_atomic(given.markdown, text.encode(), SCRIPT_FILE)
        if given.update_card:
            update_card(given.update_card, text)
    except T2VError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({k: v for k, v in report.items() if k != "videos"}, ensure_ascii=False) if given.json else text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
