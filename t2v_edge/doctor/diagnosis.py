"""The doctor's diagnosis of a machine, and of a bundle on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional, Union

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden, verify_bundle
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.device.system import System
from t2v_edge.doctor.checks import examine, examine_bundle, examine_device, guess_profile, usable_engines
from t2v_edge.doctor.finding import FAIL, OK, WARN, Finding
from t2v_edge.doctor.trial import (
    EngineOpener,
    Trial,
    check_tokenizer,
    graphs_to_try,
    installed_engines,
    judge,
    try_engines,
)
from t2v_edge.engine.registry import BUILT
from t2v_edge.errors import BundleError

Advance = Callable[[int, int], object]
"""Called with the number of graphs done, and of all graphs."""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    findings: on the machine, and on the bundle if one was given. engines: names of those that should work here. bundle:
    its name, None without one. trials: results of the bundle's golden vectors.
    """

    system: System
    findings: tuple[Finding, ...]
    engines: tuple[str, ...]
    bundle: Optional[str] = None
    trials: tuple[Trial, ...] = ()

    @property
    def can_run(self) -> bool:
        """Whether the machine can run t2v-edge, and the bundle if one was given: no finding is a failure."""
        return all(finding.level != FAIL for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "can_run": self.can_run,
            "engines": list(self.engines),
            "findings": [asdict(finding) for finding in self.findings],
            "bundle": self.bundle,
            "golden": [trial.to_json() for trial in self.trials],
            "device": guess_profile(self.system),
            "system": self.system.to_json(),
        }

    def to_text(self) -> str:
        width = max(len(finding.code) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:<5} {finding.code:<{width}}  {finding.what}")
            if finding.remedy is not None:
                lines.append(f"{'':<5} {'':<{width}}    -> {finding.remedy}")
        if self.trials:
            lines += ["", "golden vectors", *map(_trial_line, self.trials)]
        what = "this machine" if self.bundle is None else f"this machine and {self.bundle}"
        verdict = "ready" if self.can_run else "not ready: see the lines marked fail"
        return "\n".join([*lines, "", f"{what}: {verdict}"])


def diagnose(
    system: System,
    bundle: Union[str, os.PathLike[str], None] = None,
    profile: Optional[DeviceProfile] = None,
    engines: Optional[Mapping[str, EngineOpener]] = None,
    advance: Advance = lambda done, total: None,
) -> Diagnosis:
    """Examine a machine. With a bundle, a path, verify it and run its golden vectors.

    profile: what the machine should be, None for any. engines: name -> how to open it; None for all that are installed
    and should work here. A damaged bundle is a finding, not an error.
    """
    findings = [*examine(system), *(examine_device(system, profile) if profile is not None else ())]
    name: Optional[str] = None
    trials: tuple[Trial, ...] = ()
    if bundle is not None:
        name = os.fspath(bundle)
        try:
            with Bundle.open(bundle) as opened:
                name = opened.manifest.name
                verify_bundle(opened)
                findings.append(Finding("bundle", OK, f"{name} is whole: every hash and graph was checked"))
                findings += examine_bundle(system, opened.manifest)
                more, trials = _run(opened, _engines_of(system) if engines is None else engines, advance)
                findings += more
        except BundleError as error:
            problem, _, remedy = str(error).rpartition("; ")
            findings.append(Finding("bundle", FAIL, problem or remedy, remedy if problem else "export it again"))
    return Diagnosis(system, tuple(findings), usable_engines(system), name, trials)


def _engines_of(system: System) -> dict[str, EngineOpener]:
    """The installed engines. TensorRT may be installed without a GPU, and counts only if it can work."""
    usable = usable_engines(system)
    return {name: opener for name, opener in installed_engines().items() if name in usable or name not in BUILT}


def _run(
    bundle: Bundle, engines: Mapping[str, EngineOpener], advance: Advance
) -> tuple[list[Finding], tuple[Trial, ...]]:
    golden = Golden.read(bundle)
    if golden is None:
        return [
            Finding("golden", WARN, "the bundle has no golden vectors, so no engine can be checked", "export it again")
        ], ()
    if not engines:
        return [], ()
    tokenizer = check_tokenizer(bundle, golden)
    total = len(graphs_to_try(bundle, engines))
    trials = try_engines(bundle, golden, engines, lambda done: advance(done, total))
    return [tokenizer, *judge(trials)], trials


def _trial_line(trial: Trial) -> str:
    mark = "*" if trial.default else " "
    shown = f"{trial.difference}, allowed {trial.tolerance}" if trial.problem is None else trial.problem
    word = "right" if trial.right else "does not run" if trial.problem is not None else "WRONG"
    return f" {mark}{trial.engine:<17} {trial.variant:<9} {trial.stage:<7} {word}: {shown}"
