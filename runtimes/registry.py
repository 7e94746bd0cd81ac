"""RUNTIMES: every runtime by name; ``open_session`` picks one by the artifact's suffix."""

from __future__ import annotations

from pathlib import Path

from profiles.registry import Registry
from runtimes.errors import ModelLoadError, RuntimeMissing
from runtimes.session import Opener, Session, SessionOptions

RUNTIMES: Registry[Opener] = Registry(
    "runtime", how_to_add="Add a module with an Opener in runtimes/ and one line in runtimes/registry.py."
)
RUNTIMES.add_lazy("onnxruntime", "runtimes.onnxruntime_session", "OPENER")
RUNTIMES.add_lazy("litert", "runtimes.litert_session", "OPENER")
RUNTIMES.add_lazy("tflite-runtime", "runtimes.tflite_runtime_session", "OPENER")
RUNTIMES.add_lazy("coreml", "runtimes.coreml_session", "OPENER")
RUNTIMES.add_lazy("coreml-reference", "runtimes.coreml_reference", "OPENER")

# Order of preference per suffix: the first that is available here opens the file.
BY_SUFFIX: dict[str, tuple[str, ...]] = {
    ".onnx": ("onnxruntime",),
    ".ort": ("onnxruntime",),
    ".tflite": ("litert", "tflite-runtime"),
    ".mlpackage": ("coreml", "coreml-reference"),
    ".mlmodelc": ("coreml-reference",),
}


# A runtime that reads what another was named for in a manifest: a .tflite file is one, whoever interprets it.
EQUIVALENT: dict[str, tuple[str, ...]] = {"litert": ("tflite-runtime",)}


def available_runtimes(wanted: str | None = None) -> tuple[str, ...]:
    """Names that a manifest may ask for and that can be served here; of ``wanted`` alone if given.

    Imports the adapters, not the runtimes.
    """
    if wanted is not None:
        return (wanted, *(name for name, others in EQUIVALENT.items() if wanted in others))
    return tuple(name for name in RUNTIMES if runs_here(name))


def runs_here(name: str) -> bool:
    """Whether the runtime called ``name``, or one that reads the same files, can run on this machine."""
    return any(_is_available(one) for one in (name, *EQUIVALENT.get(name, ())))


def _is_available(name: str) -> bool:
    try:
        return name in RUNTIMES and RUNTIMES.get(name).available() is None
    except ImportError:  # an adapter that is not part of this installation
        return False


def open_session(path: Path, *, runtime: str | None = None, options: SessionOptions | None = None) -> Session:
    """Open ``path`` with ``runtime`` (or one that reads the same files), or with the first available runtime for its suffix.

    Raises:
        ModelLoadError: the path is missing, of no known format, or damaged.
        RuntimeMissing: no runtime for this format can run here; the message says why for each.
        RegistryMiss: ``runtime`` names none.
    """
    if not path.exists():
        raise ModelLoadError(f"{path} does not exist.", remedy="Check the path.")
    names = (runtime, *EQUIVALENT.get(runtime, ())) if runtime else BY_SUFFIX.get(path.suffix)
    if names is None:
        raise ModelLoadError(
            f"{path} has no suffix that a runtime reads.", remedy=f"Use one of {', '.join(sorted(BY_SUFFIX))}."
        )
    reasons: list[str] = []
    for name in names:
        opener = RUNTIMES.get(name)
        reason = opener.available()
        if reason is None:
            return opener.open(path, options or SessionOptions())
        reasons.append(f"{name}: {reason}")
    raise RuntimeMissing(
        f"No runtime for {path.name} can run here ({'; '.join(reasons)}).",
        remedy="Install the extra that holds it, for instance pip install 'edgewright[agent-ort]'.",
    )
