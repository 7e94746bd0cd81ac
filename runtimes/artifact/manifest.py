"""The release manifest: everything a device must know about one release of one model.

Canonical JSON (runtimes/artifact/canonical.py). Fields that this version does not know are kept, so that reading and writing back
changes no byte. Paths are relative to the manifest's own folder and may not leave it.
"""

import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeVar

from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.schema import Field, Schema
from runtimes.errors import ManifestError

SCHEMA: Final = "edgewright.manifest/1"
MAX_MANIFEST_BYTES = 4 << 20


def _inside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError(f"path {path!r} leaves the release's folder")


RelativePath = Annotated[str, Field(min_length=1, max_length=512, check=_inside)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


# A JSON number, kept as it was written: 50 stays 50 and 50.0 stays 50.0, so that reading and writing back changes no byte.
Number = int | float


class _Open(Schema, extra="allow"):
    """Unknown fields are kept."""


class Document(_Open):
    """A document of its own: ``schema`` is always written, other fields only if they were given or read."""

    schema_: str

    def to_bytes(self) -> bytes:
        """Canonical JSON; fields that were absent when read stay absent."""
        fields = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return canonical_json({**fields, "schema": self.schema_})


class FileRef(_Open):
    path: RelativePath
    size_bytes: int = Field(ge=0)
    sha256: Digest


class InputSpec(_Open):
    """``range`` is the closed interval that every element must lie in; None means any finite value.

    ``layout``: where an image's channels are, for inputs and outputs of rank 4.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    layout: Literal["NCHW", "NHWC"] | None = None
    range: tuple[Number, Number] | None = None
    preprocessing: dict[str, Any] | None = None


class OutputSpec(_Open):
    """``semantic``: "logits", "probabilities" or None; ``labels`` name the last axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    layout: Literal["NCHW", "NHWC"] | None = None
    semantic: Literal["logits", "probabilities"] | None = None
    labels: tuple[str, ...] | None = None


class ArtifactRef(FileRef):
    """One model file for some profiles. A .mlpackage travels as a stored, deterministic zip (``archive`` = "zip").

    ``quality``: figures that the build measured (max_abs_error, agreement, accuracy, ...).
    """

    format: Literal["onnx", "tflite", "coreml"]
    precision: str
    runtime: str
    profiles: tuple[str, ...] = Field(min_length=1)
    archive: Literal["zip"] | None = None
    quality: dict[str, Any] = Field(default_factory=dict)


class SelfTest(_Open):
    """Vectors for the device's trial: an .npz with ``in/<name>`` and ``out/<name>`` arrays, samples on axis 0.

    An output element may differ by ``max_abs_error``; ``min_agreement`` is the share of samples whose argmax must match.
    """

    vectors: FileRef
    max_abs_error: Number = Field(gt=0)
    min_agreement: Number = Field(default=0.0, ge=0, le=1)
    max_latency_ms: Number | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)


class Histogram(_Open):
    """Reference distribution: ``counts`` has one more entry than ``edges``; bin i is [edges[i-1], edges[i]).

    The outer bins are open, so every finite value falls in one.
    """

    edges: tuple[Number, ...]
    counts: tuple[int, ...]

    def validate_whole(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.counts)} counts for {len(self.edges)} edges; expected one more count than edges"
            )
        if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)) or min(self.counts) < 0:
            raise ValueError("edges must increase and counts must not be negative")


class DriftBaseline(_Open):
    """What the calibration or evaluation data looked like. Keys of ``inputs`` are input names (mean over a sample's elements).

    ``confidence``: largest probability of a sample; ``classes``: counts per predicted class.
    """

    inputs: dict[str, Histogram] = Field(default_factory=dict)
    confidence: Histogram | None = None
    classes: tuple[int, ...] | None = None
    psi_warning: Number = 0.1
    psi_critical: Number = 0.2
    min_samples: int = 500


class Manifest(Document):
    """One release of one model. ``sequence`` orders releases and never repeats; ``release`` is the name people see."""

    schema_: Literal["edgewright.manifest/1"] = Field(default=SCHEMA, alias="schema")
    model: Name
    release: Name
    sequence: int = Field(ge=1)
    created: str
    inputs: tuple[InputSpec, ...] = Field(min_length=1)
    outputs: tuple[OutputSpec, ...] = Field(min_length=1)
    artifacts: tuple[ArtifactRef, ...] = Field(min_length=1)
    self_test: SelfTest
    drift: DriftBaseline = DriftBaseline()
    quality: dict[str, Any] = Field(default_factory=dict)
    documents: dict[str, FileRef] = Field(default_factory=dict)  # provenance, sbom, report
    # Raw inputs that a device may send with its telemetry. Signed with everything else here: no configuration file can ask.
    samples_per_hour: Number = Field(default=0, ge=0)

    def artifact_for(self, profile: str, runtimes: tuple[str, ...]) -> ArtifactRef:
        """The first artifact for ``profile`` whose runtime is one of ``runtimes`` (in the order of ``artifacts``).

        Raises ManifestError if there is none.
        """
        for artifact in self.artifacts:
            if profile in artifact.profiles and artifact.runtime in runtimes:
                return artifact
        offered = sorted({(p, a.runtime) for a in self.artifacts for p in a.profiles})
        raise ManifestError(
            f"Release {self.release} of {self.model} has nothing for profile {profile!r} on {', '.join(runtimes)}; "
            f"it offers {offered}.",
            remedy="Set the agent's profile to one that the release was built for, or publish a release with this profile.",
        )


def read_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        ManifestError: too large, not JSON, nested too deep, duplicate keys, or not following the schema.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad(f"{len(data)} bytes, at most {MAX_MANIFEST_BYTES} are read")
    try:
        return parse_document(Manifest, data)
    except (ValueError, RecursionError) as error:
        raise _bad(reason_of(error)) from error


D = TypeVar("D", bound=Document)


def parse_document(kind: type[D], data: bytes) -> D:
    """Parse JSON into ``kind``, refusing what would not be written back as the same bytes.

    Raises:
        ValueError: not JSON, duplicate keys, no ``schema``, or not following it.
        RecursionError: nested too deep.
    """
    fields = json.loads(data, object_pairs_hook=_unique)
    if not isinstance(fields, dict) or "schema" not in fields:
        raise ValueError("it is not an object with a schema field")
    document = kind.model_validate(fields)
    # A value that was converted (1 to 1.0 where a float is kept) would change the digest when written back.
    if document.to_bytes() != canonical_json(fields):
        raise ValueError("a field has another type than its schema says")
    return document


def reason_of(error: Exception) -> str:
    """The first few reasons of a failed ``parse_document``, in one line."""
    return str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return document


def _bad(reason: str) -> ManifestError:
    return ManifestError(
        f"The manifest cannot be used: {reason}.", remedy="Fetch the release again, or publish it again."
    )
