"""The Core ML reference evaluator: runs a saved .mlpackage on any CPU, operation by operation, with numpy.

It shares no code with whatever wrote the package: bytes are read by `blobs` and `program`, semantics follow the MIL
operation documentation (one file per family in `ops/`). What it proves is called *reference-verified*: the program means
what it should. How Apple's compiler then schedules and rounds it, only macOS can tell (runtimes/coreml_session.py).
"""

from __future__ import annotations

from pathlib import Path

from runtimes.session import Session, SessionOptions


class CoreMLReferenceOpener:
    """Opens .mlpackage folders that hold an ML program, and .mlmodelc folders that hold one as a protobuf."""

    name = "coreml-reference"
    suffixes: tuple[str, ...] = (".mlpackage", ".mlmodelc")

    def available(self) -> str | None:
        from runtimes.coreml_reference.proto import proto_folder

        if proto_folder() is None:
            return "coremltools, whose protobuf classes read the format, is not installed"
        return None

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Open ``path``. ``options.threads`` and ``provider`` have no meaning here.

        Raises:
            RuntimeMissing: the protobuf classes are not installed.
            ModelLoadError: the package is damaged, or uses something the evaluator does not know.
        """
        from runtimes.coreml_reference.session import open_package

        return open_package(path)


OPENER = CoreMLReferenceOpener()
