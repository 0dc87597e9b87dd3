"""The doctor: what of t2v-edge works on a machine, what does not, and what to type."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.device.system import System
from t2v_edge.doctor.checks import (
    FAIL,
    OK,
    WARN,
    Finding,
    examine,
    examine_bundle,
    examine_device,
    guess_profile,
    usable_engines,
)
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
"""Called with how many graphs are done, of how many."""


@dataclass(frozen=True)
class Diagnosis:
    """`findings` of a machine and, where one was given, of a bundle on it; `trials` of its golden vectors.

    `engines`: names of those that can be used, going by the machine's facts. `bundle`: its name, None without one.
    """

    system: System
    findings: tuple[Finding, ...]
    engines: tuple[str, ...]
    bundle: Optional[str] = None
    trials: tuple[Trial, ...] = ()

    @property
    def can_run(self) -> bool:
        """Whether nothing failed: the machine can run t2v-edge, and the bundle if there is one."""
        return all(finding.level != FAIL for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "can_run": self.can_run,
            "engines": list(self.engines),
            "findings": [finding.to_json() for finding in self.findings],
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
        verdict = "ready" if self.can_run else "not ready: see what is marked fail"
        return "\n".join([*lines, "", f"{what}: {verdict}"])


def diagnose(
    system: System,
    bundle: Union[str, os.PathLike[str], None] = None,
    profile: Optional[DeviceProfile] = None,
    engines: Optional[Mapping[str, EngineOpener]] = None,
    advance: Advance = lambda done, total: None,
) -> Diagnosis:
    """Examine a machine; with `bundle`, a path, verify it and run its golden vectors on `engines`.

    profile: what the machine is meant to be, None for whatever it is. engines: name -> how it is opened, None for every
    one that is installed here and that the machine's facts do not rule out. A bundle that is damaged is a finding, not
    an error.
    """
    findings = [*examine(system), *(examine_device(system, profile) if profile is not None else ())]
    name: Optional[str] = None
    trials: tuple[Trial, ...] = ()
    if bundle is not None:
        name = os.fspath(bundle)
        try:
            with Bundle.open(bundle) as opened:
                name = opened.manifest.name
                opened.verify()
                findings.append(Finding("bundle", OK, f"{name} is whole: every hash and graph was checked"))
                findings += examine_bundle(system, opened.manifest)
                more, trials = _run(opened, _engines_of(system) if engines is None else engines, advance)
                findings += more
        except BundleError as error:
            problem, _, remedy = str(error).rpartition("; ")
            findings.append(Finding("bundle", FAIL, problem or remedy, remedy if problem else "export it again"))
    return Diagnosis(system, tuple(findings), usable_engines(system), name, trials)


def _engines_of(system: System) -> dict[str, EngineOpener]:
    """Those installed here; TensorRT, whose library may be there without a GPU, only where it can work."""
    usable = usable_engines(system)
    return {name: door for name, door in installed_engines().items() if name in usable or name not in BUILT}


def _run(
    bundle: Bundle, engines: Mapping[str, EngineOpener], advance: Advance
) -> tuple[list[Finding], tuple[Trial, ...]]:
    golden = Golden.read(bundle)
    if golden is None:
        return [
            Finding(
                "golden", WARN, "the bundle has no golden vectors, so that no engine can be proved", "export it again"
            )
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
