"""``t2v-edge devices``: the device profiles, the sources of their numbers, and estimates for a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2v_edge.commands.arguments import add_json
from t2v_edge.commands.output import print_result

if TYPE_CHECKING:
    from t2v_edge.device.roofline import Estimate

DESCRIPTION = "List the device profiles, show one, or estimate what a bundle does on them."
EXAMPLES = """examples:
  t2v-edge devices
  t2v-edge devices jetson-orin-nano-8gb
  t2v-edge devices jetson-orin-nano-8gb --json
  t2v-edge devices --bundle BUNDLE                              # an estimate for every device
  t2v-edge devices --bundle BUNDLE jetson-agx-orin-64gb@30W     # an estimate for one, stage by stage"""

NOTE = """Estimates, not measurements. Each adds arithmetic at a share of the device's dense rate, memory traffic at its
bandwidth, and a time for each kernel (t2v_edge/device/roofline.py). Expect them to be off by a factor of 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show this profile only, with the source of each number; NAME@MODE is a power mode of it",
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="BUNDLE", help="estimate this bundle's frames a second, latency and bottleneck"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from t2v_edge.device.profile import list_profiles, load_profile

    profiles = [load_profile(name) for name in ([args.name] if args.name else list_profiles())]
    if args.bundle is not None:
        from t2v_edge.bundle.bundle import Bundle
        from t2v_edge.device.roofline import estimate, require_costs

        with Bundle.open(args.bundle) as bundle:
            require_costs(bundle.manifest)
            found = [estimate(profile, bundle.manifest) for profile in profiles]
        text = _one(found[0]) if args.name else _table(found)
        print_result(found[0].to_json() if args.name else [e.to_json() for e in found], text, args.json)
        return 0
    if args.name:
        print_result(profiles[0].to_json(), "\n".join(_lines(profiles[0].to_json(), "")), args.json)
    else:
        text = "\n".join(f"{p.name:<26}{p.title}" for p in profiles)
        print_result([p.to_json() for p in profiles], text, args.json)
    return 0


def _table(found: list[Estimate]) -> str:
    lines = [
        f"{found[0].bundle} on each device, base frames a second",
        "",
        f"{'device':<24}{'fps':>9}{'frame ms':>10}{'first ms':>10}{'MB':>7}  bound by",
    ]
    unknown = []
    for e in found:
        if e.fps is None or e.frame_ms is None or e.first_frame_ms is None or e.memory_bytes is None:
            unknown.append(f"  {e.device}: {', '.join(e.missing)}")
            continue
        lines.append(
            f"{e.device:<24}{_rate(e.fps):>9}{e.frame_ms:>10.3g}{e.first_frame_ms:>10.3g}"
            f"{e.memory_bytes / 1e6:>7.0f}  {e.binds}{'' if e.fits is not False else '; does not fit'}"
        )
    if unknown:
        lines += ["", "no estimate, for want of", *unknown]
    return "\n".join([*lines, "", NOTE])


def _one(e: Estimate) -> str:
    if e.fps is None or e.frame_ms is None or e.first_frame_ms is None or e.memory_bytes is None:
        return f"{e.bundle} on {e.device}: no estimate, for want of {', '.join(e.missing)}"
    lines = [
        f"{e.bundle} on {e.device}: about {_rate(e.fps)} base frames a second, {e.frame_ms:.3g} ms a frame, bound "
        f"by {e.binds}",
        f"caption to first frame {e.first_frame_ms:.3g} ms, copy {e.copy_ms:.3g} ms, memory "
        f"{e.memory_bytes / 1e6:.0f} MB besides the engine's libraries"
        + ("" if e.fits is not False else ": more than it has"),
        "",
        f"{'stage':<8}{'variant':<10}{'ms':>9}{'arithmetic':>12}{'bandwidth':>11}{'launches':>10}  bound by",
    ]
    for s in e.stages:
        lines.append(
            f"{s.stage:<8}{s.variant:<10}{s.ms:>9.3g}{s.arithmetic_ms:>12.3g}{s.bandwidth_ms:>11.3g}"
            f"{s.launches_ms:>10.3g}  {s.binds}"
        )
    return "\n".join([*lines, "", NOTE])


def _rate(fps: float) -> str:
    """Two digits: an estimate is not more exact."""
    return f"{float(f'{fps:.2g}'):,.10g}"


def _lines(value: Any, indent: str) -> list[str]:
    """A profile's JSON as indented lines, without unknown values."""
    lines: list[str] = []
    for key, item in value.items():
        if item is None or item in ([], {}):
            continue
        if isinstance(item, dict):
            lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and all(isinstance(row, dict) for row in item):
            lines.append(f"{indent}{key}:")
            for row in item:
                shown = ", ".join(f"{k} {v}" for k, v in row.items() if v is not None)
                lines.append(f"{indent}  - {shown}")
        else:
            shown = ", ".join(str(row) for row in item) if isinstance(item, list) else item
            lines.append(f"{indent}{key}: {json.dumps(shown) if isinstance(shown, bool) else shown}")
    return lines
