"""Errors of running models and of reading what the compiler ships.

    RuntimeFailure                the base
    ├── RuntimeMissing            the package that runs this format is not installed (exit 4)
    ├── ModelLoadError            the file is missing, damaged or not of this format (exit 3)
    ├── InputMismatch             a feed is missing, or has the wrong dtype or shape (exit 2)
    ├── InferenceFailed           the runtime refused or failed while running (exit 3)
    ├── ChildFailed               an isolated child crashed, ran out of time or memory (exit 3)
    └── ArtifactError             what was shipped cannot be trusted or used (exit 5)
        ├── ManifestError         a manifest does not follow its schema
        ├── DigestMismatch        bytes differ from the digest that was promised
        └── DeltaError            a patch is damaged, or made for another base
            └── DeltaBaseMismatch the base file is not the one the patch was made from

StorageError (exit 2) stands beside them: the disk is full or refuses; what was there before is intact.
"""

from __future__ import annotations

from profiles.errors import EdgewrightError, ExitCode


class RuntimeFailure(EdgewrightError):
    exit_code = ExitCode.UNSUPPORTED


class RuntimeMissing(RuntimeFailure):
    exit_code = ExitCode.MISSING


class ModelLoadError(RuntimeFailure):
    pass


class InputMismatch(RuntimeFailure):
    exit_code = ExitCode.USAGE


class InferenceFailed(RuntimeFailure):
    pass


class ChildFailed(RuntimeFailure):
    pass


class ArtifactError(RuntimeFailure):
    exit_code = ExitCode.TRUST


class ManifestError(ArtifactError):
    pass


class DigestMismatch(ArtifactError):
    pass


class DeltaError(ArtifactError):
    pass


class DeltaBaseMismatch(DeltaError):
    pass


class StorageError(EdgewrightError):
    exit_code = ExitCode.USAGE
