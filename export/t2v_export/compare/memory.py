"""A process of its own that plays one lane and says how far its memory grew: `python -m t2v_export.compare.memory`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from t2v_export.compare import play
from t2v_export.compare.lanes import Lane, Rack

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most memory this process ever held. Linux's own record of the process starts anew with each program;
    `getrusage` would count what the parent held when it forked.
    """
    if STATUS.is_file():
        for line in STATUS.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not everywhere

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main(arguments: list[str]) -> int:
    bundle, engine, caption, seconds, *mix = arguments
    lane = Lane("lane", Path(bundle), dict(part.split("=", 1) for part in mix))
    importlib.import_module(f"t2v_edge.engine.{engine}")  # the engine's library is no part of what a lane needs
    before = peak_bytes()
    with Rack(engine, None) as rack:
        pipeline = rack.pipeline(lane)
        steps = max(1, round(float(seconds) * pipeline.manifest.video.fps))
        draws = play.draws_of(pipeline, 0)
        for step, _ in zip(play.step_motion(pipeline, ((0, caption),), draws), range(steps)):
            play.render_at(pipeline, play.Take(step.motion, step.condition, draws.render), 0)
        sys.stdout.write(f"{peak_bytes() - before}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
