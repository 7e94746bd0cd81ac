"""Imports point one way: profiles <- runtimes <- {compiler, device_agent, hw_benchmarks}; heavy packages load only where used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "profiles": {"profiles"},
    "runtimes": {"profiles", "runtimes"},
    "compiler": {"profiles", "runtimes", "compiler"},
    "device_agent": {"profiles", "runtimes", "device_agent"},
    "hw_benchmarks": {"profiles", "runtimes", "hw_benchmarks"},
}
HEAVY = {
    "torch",
    "tensorflow",
    "coremltools",
    "onnxruntime",
    "ai_edge_litert",
    "tflite_runtime",
    "onnxsim",
    "neural_compressor",
}


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module


def _module_level(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from _imports(statement)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in _imports(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in ALLOWED and name.split(".")[0] not in ALLOWED[package]
    ]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_heavy_packages_are_imported_inside_functions(package: str) -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line} imports {name} at module level"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in _module_level(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in HEAVY
    ]
    assert not offenders, "\n".join(offenders)
