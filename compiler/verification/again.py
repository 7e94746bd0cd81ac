"""A finished build verified once more, where its artifacts can run better: the step from reference-verified to device-verified.

Every artifact runs the build's self-test vectors (inputs and the source's outputs, selftest.npz) on the best runtime of this
machine; a Core ML package on macOS on each compute unit. The tolerance is the one that the release gives devices for their trial.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.draft import DRAFT_NAME, VECTORS_NAME
from compiler.errors import DataError
from compiler.gates import Gate
from compiler.report.read import read_report
from compiler.report.schema import ArtifactReport, Report
from compiler.report.write import write_report
from compiler.verification.child import Execution
from compiler.verification.evidence import Verification
from compiler.verification.metrics import Parity, parity
from profiles.errors import EdgewrightError
from profiles.schema import Format
from runtimes.artifact.files import sha256_tree, write_atomic
from runtimes.artifact.manifest import Manifest, SelfTest, read_manifest
from runtimes.isolation import run_isolated
from runtimes.session import Array, Evidence

TIMEOUT_S = 1800.0
REJECTED_NAME = "manifest.rejected.json"
COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
# How much each kind of evidence proves.
STRENGTH = {Evidence.REFERENCE_VERIFIED: 0, Evidence.EXECUTED: 1, Evidence.DEVICE_VERIFIED: 2}

Execute = Callable[[Path, str | None, Mapping[str, Array]], Execution]


def verify_again(folder: Path, units: Sequence[str] = (), execute: Execute | None = None) -> tuple[Report, bool]:
    """Execute every artifact of the build in ``folder`` here; write report.json, report.html and the manifest draft anew.

    Args:
        units: compute units for Core ML where the system's own runtime is here; default: all four.
        execute: runs an artifact on a unit with feeds; default: in a child process.

    Returns:
        the new report, and whether everything agreed. Where it did not, the draft is set aside as manifest.rejected.json.

    Raises:
        DataError: the folder is no build, or one whose gates said no; an artifact is not the one that the report tells of.
        ManifestError: the draft is damaged.
    """
    report = read_report(folder)
    draft = _draft(folder)
    feeds, truth = _vectors(folder, draft)
    found: list[Verification] = []
    for artifact in report.artifacts:
        if sha256_tree(folder / artifact.path) != artifact.sha256:
            raise DataError(f"{artifact.path} changed since it was built.", remedy="Build it again.")
        found += _each_unit(
            folder / artifact.path, artifact, feeds, truth, draft.self_test, units, execute or _in_child
        )
    updated = replace(report, artifacts=tuple(_updated(a, found) for a in report.artifacts))
    write_report(updated, folder)
    ok = all(one.ok for one in found)
    _write_draft(folder, draft, updated, ok)
    return updated, ok


def _draft(folder: Path) -> Manifest:
    try:
        return read_manifest((folder / DRAFT_NAME).read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder} has no {DRAFT_NAME}: a gate of the build, or of a verification, said no.",
            remedy="Build the model again until every gate passes.",
        ) from error


def _vectors(folder: Path, draft: Manifest) -> tuple[dict[str, Array], dict[str, Array]]:
    if draft.self_test is None:
        raise DataError(f"{DRAFT_NAME} names no self-test.", remedy="Build the model again.")
    try:
        with np.load(folder / VECTORS_NAME, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{VECTORS_NAME} cannot be read: {error}.", remedy="Build the model again.") from error
    feeds = {name.removeprefix("in/"): a for name, a in arrays.items() if name.startswith("in/")}
    return feeds, {name.removeprefix("out/"): a for name, a in arrays.items() if name.startswith("out/")}


def _in_child(path: Path, unit: str | None, feeds: Mapping[str, Array]) -> Execution:
    # One sample at a time where the artifact takes any number: every flexible batch reaches down to the one it was built with.
    arguments = {"path": str(path), "runtime": None, "feeds": dict(feeds), "batch": 1, "provider": unit}
    result = run_isolated("compiler.verification.child:execute", arguments, timeout_s=TIMEOUT_S)
    assert isinstance(result, Execution)
    return result


def _each_unit(
    path: Path,
    artifact: ArtifactReport,
    feeds: Mapping[str, Array],
    truth: Mapping[str, Array],
    test: SelfTest | None,
    units: Sequence[str],
    execute: Execute,
) -> list[Verification]:
    assert test is not None
    here = platform.system() == "Darwin" and artifact.format == Format.COREML.value
    found: list[Verification] = []
    first: dict[str, Array] | None = None
    for unit in (units or COMPUTE_UNITS) if here else (None,):
        try:
            made = execute(path, unit, feeds)
        except EdgewrightError as error:
            found.append(_failed(artifact, unit, test, error.message))
            continue
        outputs = {name: made.outputs[name] for name in truth}
        beside = parity(outputs, first).relative_error if first is not None else None
        first = first if first is not None else outputs
        found.append(_judged(artifact, unit, made, parity(outputs, truth), test, beside))
    return found


def _failed(artifact: ArtifactReport, unit: str | None, test: SelfTest, reason: str) -> Verification:
    where = (artifact.path, unit, artifact.runtime, "", "", platform.platform())
    return Verification(*where, 0.0, None, None, float(test.max_abs_error), False, reason)


def _judged(
    artifact: ArtifactReport, unit: str | None, made: Execution, found: Parity, test: SelfTest, beside: float | None
) -> Verification:
    """The device's own trial: finite, within its error, and with its share of equal answers."""
    agreed = found.agreement if found.agreement is not None else 1.0
    ok = found.finite and found.max_abs_error <= test.max_abs_error and agreed >= test.min_agreement
    reason = (
        f"{found.worst_tensor!r} is off by {found.max_abs_error:.3g}, {test.max_abs_error:.3g} is allowed; "
        f"{agreed:.1%} of the answers agree, {test.min_agreement:.1%} is asked."
    )
    runtime = made.runtime
    return Verification(
        artifact.path,
        unit,
        runtime.name,
        runtime.version,
        runtime.evidence.value,
        platform.platform(),
        made.latency_ns / 1e6,
        found,
        beside,
        float(test.max_abs_error),
        ok,
        reason,
    )


def _updated(artifact: ArtifactReport, found: Sequence[Verification]) -> ArtifactReport:
    """The artifact with its verifications, and with the stronger evidence where all of them agreed. Evidence never weakens."""
    mine = tuple(one for one in found if one.artifact == artifact.path)
    gates = tuple(gate for gate in artifact.gates if gate.name != "verify")
    gates += tuple(_gate(one) for one in mine)
    kept = replace(artifact, gates=gates, verifications=mine)
    if not all(one.ok for one in mine) or not mine:
        return kept
    weakest = min(mine, key=lambda one: STRENGTH[Evidence(one.evidence)])
    if STRENGTH[Evidence(weakest.evidence)] <= STRENGTH[Evidence(artifact.evidence)]:
        return kept
    return replace(kept, evidence=weakest.evidence, runtime=weakest.runtime, runtime_version=weakest.runtime_version)


def _gate(one: Verification) -> Gate:
    error = one.parity.max_abs_error if one.parity is not None else float("inf")
    where = f"On {one.runtime}{f' {one.unit}' if one.unit else ''} ({one.machine}): "
    return Gate("verify", Path(one.artifact).name, one.ok, error, one.tolerance, where + one.reason)


def _write_draft(folder: Path, draft: Manifest, report: Report, ok: bool) -> None:
    document: dict[str, Any] = json.loads(draft.to_bytes())
    evidence = {a.path: a.evidence for a in report.artifacts}
    for entry in document["artifacts"]:
        entry["quality"]["evidence"] = evidence.get(entry["path"], entry["quality"].get("evidence"))
    content = Manifest.model_validate(document).to_bytes()
    write_atomic(folder / (DRAFT_NAME if ok else REJECTED_NAME), content)
    if not ok:
        (folder / DRAFT_NAME).unlink()
