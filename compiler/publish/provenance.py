"""Documents that travel with a release: an in-toto provenance statement and a CycloneDX bill of materials.

Both are TUF targets and therefore signed; both are canonical JSON made from their inputs alone, so equal releases have equal bytes.

Source: in-toto Attestation Framework, Statement v1; SLSA Provenance v1; CycloneDX 1.6.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.manifest import ArtifactRef, Manifest

BUILD_TYPE = "https://edgewright.dev/build/v1"
# What can shape an artifact's bytes; those that are installed are listed.
TOOLS = (
    "edgewright",
    "ai-edge-litert",
    "coremltools",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "tensorflow-cpu",
    "tf2onnx",
    "torch",
)
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, BUILD_TYPE)


def tool_versions() -> dict[str, str]:
    """Installed tools by name. edgewright run from a source tree has no version of its own and is left out."""
    found: dict[str, str] = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """What went into a build: ``source`` has "sha256", "location", "kind"; ``tools`` versions; ``data`` digests by role.

    ``configuration``: the options of ``edgewright build``.
    """

    source: Mapping[str, str]
    tools: Mapping[str, str]
    data: Mapping[str, str]
    configuration: Mapping[str, Any] = field(default_factory=dict)


def facts_of(draft: Manifest) -> BuildFacts:
    """The facts that the build wrote into ``quality.provenance``; tools that it does not name are those installed here."""
    told = draft.quality.get("provenance")
    facts = told if isinstance(told, dict) else {}
    chosen = facts.get("configuration")
    return BuildFacts(
        _texts(facts.get("source")),
        _texts(facts.get("tools")) or tool_versions(),
        _texts(facts.get("data")),
        chosen if isinstance(chosen, dict) else {},
    )


def _texts(value: object) -> dict[str, str]:
    """The text entries of a mapping; a draft is a file, and anything may stand there."""
    return {str(k): v for k, v in value.items() if isinstance(v, str) and v} if isinstance(value, dict) else {}


def provenance(manifest: Manifest, facts: BuildFacts) -> bytes:
    """In-toto statement: these artifacts came from this source and data, by these tools."""
    materials: list[dict[str, Any]] = []
    if "sha256" in facts.source:
        name = facts.source.get("location", "source")
        materials.append({"name": name, "digest": {"sha256": facts.source["sha256"]}})
    materials += [{"name": name, "digest": {"sha256": facts.data[name]}} for name in sorted(facts.data)]
    materials += [{"name": name, "uri": _purl(name, facts.tools[name])} for name in sorted(facts.tools)]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": a.path, "digest": {"sha256": a.sha256}} for a in manifest.artifacts],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "model": manifest.model,
                    "release": manifest.release,
                    "configuration": dict(facts.configuration),
                },
                "internalParameters": {},
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": BUILD_TYPE}, "metadata": {"finishedOn": manifest.created}},
        },
    }
    return canonical_json(statement)


def bill_of_materials(manifest: Manifest, tools: Mapping[str, str]) -> bytes:
    """CycloneDX 1.6: the release as a machine-learning model, its artifacts as files, the tools that made them."""
    content = ":".join(a.sha256 for a in manifest.artifacts)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{manifest.model}:{manifest.release}:{content}')}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "tools": {"components": [_library(name, tools[name]) for name in sorted(tools)]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": manifest.model,
                "version": manifest.release,
            },
        },
        "components": [_file(artifact) for artifact in manifest.artifacts],
    }
    return canonical_json(document)


def _file(artifact: ArtifactRef) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{artifact.path}",
        "name": artifact.path,
        "hashes": [{"alg": "SHA-256", "content": artifact.sha256}],
        "properties": [
            {"name": "edgewright:format", "value": artifact.format},
            {"name": "edgewright:precision", "value": artifact.precision},
            {"name": "edgewright:runtime", "value": artifact.runtime},
        ],
    }


def _library(name: str, release: str) -> dict[str, str]:
    purl = _purl(name, release)
    return {"type": "library", "bom-ref": purl, "name": name, "version": release, "purl": purl}


def _purl(name: str, release: str) -> str:
    return f"pkg:pypi/{name}@{release}"
