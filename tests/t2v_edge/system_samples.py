"""Recorded systems, read: the files under ``systems/`` and the interpreter that goes with each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from t2v_edge.device.system import PythonFacts, PythonModule, System

ROOT = Path(__file__).parent / "systems"
CPU = {"t2v-edge": "0.1.0", "numpy": "1.26.4", "tokenizers": "0.21.0", "onnxruntime": "1.23.2"}


def dist_packages(version: str, python: str) -> PythonModule:
    """TensorRT's module as the distribution's package brings it."""
    return PythonModule(version, f"/usr/lib/python{python}/dist-packages/tensorrt")


def in_venv(version: str, python: str) -> PythonModule:
    """TensorRT's module as pip brings it."""
    return PythonModule(version, f"/home/user/t2v/lib/python{python}/site-packages/tensorrt")


def jetson(version: tuple[int, int, int], cuda_python: str, tensorrt: PythonModule) -> PythonFacts:
    packages = {**CPU, "cuda-python": cuda_python, "cuda-bindings": cuda_python}
    return PythonFacts(version, "aarch64", "/home/user/t2v", True, True, packages, tensorrt)


PYTHONS = {
    "jetpack-5.1-xavier": PythonFacts((3, 9, 5), "aarch64", "/home/user/t2v", True, False, CPU),
    "jetpack-5.1-orin": PythonFacts((3, 9, 5), "aarch64", "/home/user/t2v", True, False, CPU),
    "jetpack-6.0": jetson((3, 10, 12), "12.2.1", dist_packages("8.6.2", "3.10")),
    "jetpack-6.2": jetson((3, 10, 12), "12.6.2", dist_packages("10.3.0", "3.10")),
    "jetpack-7.0": jetson((3, 12, 3), "13.0.3", dist_packages("10.13.3.9", "3.12")),
    "jetpack-7.2": jetson((3, 12, 3), "13.2.0", dist_packages("10.16.2.10", "3.12")),
    "desktop-rtx": PythonFacts(
        (3, 12, 3),
        "x86_64",
        "/home/user/t2v",
        True,
        False,
        {**CPU, "cuda-bindings": "13.0.3"},
        tensorrt_rtx=PythonModule("1.7.1", "/home/user/t2v/lib/python3.12/site-packages/tensorrt_rtx"),
    ),
    "cpu-x86": PythonFacts((3, 11, 2), "x86_64", "/home/user/t2v", True, False, CPU),
}


def read_system(name: str, **python) -> System:
    """A recorded system; `python` changes facts of its interpreter."""
    return System.read(ROOT / name, replace(PYTHONS[name], **python))


def without(packages, *names):
    return {name: version for name, version in packages.items() if name not in names}
