"""From a release on disk to the chain that answers for it."""

from __future__ import annotations

from functools import partial

from device_agent.chain import CPU, LAST_GOOD, Chain, Step
from device_agent.config import AcceleratorConfig, ModelConfig
from device_agent.errors import NotInstalled
from device_agent.pool import Pool
from device_agent.slots import SlotRef
from device_agent.store import Store
from runtimes.artifact.manifest import ArtifactRef, Manifest
from runtimes.registry import available_runtimes, open_session, runs_here
from runtimes.session import SessionOptions


def artifact_here(model: ModelConfig, manifest: Manifest) -> ArtifactRef:
    """The artifact for this model's profile on a runtime that is installed. Raises ManifestError if there is none."""
    if model.runtime is not None:
        return manifest.artifact_for(model.profile, available_runtimes(model.runtime))
    named = dict.fromkeys(artifact.runtime for artifact in manifest.artifacts)
    return manifest.artifact_for(model.profile, tuple(name for name in named if runs_here(name)))


def open_chain(model: ModelConfig, store: Store, ref: SlotRef, manifest: Manifest, previous: SlotRef | None) -> Chain:
    """The steps for release ``ref``: its accelerators, the CPU, the release before it, and the declared constant.

    Raises:
        ManifestError: the release has nothing for this device.
        ConfigError: the constant does not fit the outputs.
    """
    artifact = artifact_here(model, manifest)
    steps = [
        Step(_label(accelerator), partial(_pool, model, store, ref, artifact, accelerator))
        for accelerator in model.accelerators
    ]
    steps.append(Step(CPU, partial(_pool, model, store, ref, artifact, None)))
    if previous is not None:
        steps.append(Step(LAST_GOOD, partial(_previous, model, store, previous), own=False))
    return Chain(steps, manifest, model.constant)


def _label(accelerator: AcceleratorConfig) -> str:
    """Short enough for a metric's attribute: a delegate's file, a provider's name."""
    return accelerator.provider.rpartition("/")[2]


def _pool(
    model: ModelConfig, store: Store, ref: SlotRef, artifact: ArtifactRef, accelerator: AcceleratorConfig | None
) -> Pool:
    options = SessionOptions(threads=model.threads)
    if accelerator is not None:
        given = tuple(sorted(accelerator.options.items()))
        options = SessionOptions(threads=model.threads, provider=accelerator.provider, provider_options=given)
    path = store.artifact(ref)
    return Pool(
        [open_session(path, runtime=artifact.runtime, options=options) for _ in range(model.sessions)], model.queue
    )


def _previous(model: ModelConfig, store: Store, ref: SlotRef) -> Pool:
    if store.load().previous != ref:  # an update has taken its slot since
        raise NotInstalled("The release before is no longer kept.", remedy="Publish a release that works.")
    return _pool(model, store, ref, artifact_here(model, store.manifest(ref)), None)
