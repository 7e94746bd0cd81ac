"""A PyTorch module as a Session: the truth that artifacts of a PyTorch source are held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtimes.errors import InferenceFailed
from runtimes.session import Array, Evidence, Feeds, RuntimeInfo, SessionBase, TensorSpec, check_feeds


class TorchSession(SessionBase):
    """Runs ``module`` on the CPU without gradients, in the mode (eval) that it is in. See ``Session``."""

    def __init__(self, module: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        import torch

        self._module, self._inputs, self._outputs = module, inputs, outputs
        self._runtime = RuntimeInfo("pytorch", str(torch.__version__), Evidence.EXECUTED)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def runtime(self) -> RuntimeInfo:
        return self._runtime

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Raises InputMismatch, InferenceFailed."""
        import torch

        check_feeds(self._inputs, feeds)
        # A copy: torch warns about, and could write into, read-only arrays.
        arguments = [torch.from_numpy(np.array(feeds[spec.name])) for spec in self._inputs]
        try:
            with torch.no_grad():
                results = flat_tensors(self._module(*arguments))
        except Exception as error:  # the module is anybody's code
            raise InferenceFailed(
                f"The PyTorch source failed while running: {error!r}", remedy="Run the module once by itself."
            ) from error
        return {spec.name: tensor.numpy().copy() for spec, tensor in zip(self._outputs, results, strict=True)}


def flat_tensors(result: Any) -> list[Any]:
    """The tensors of a module's result (tensor, tuple, dict or nested) in the order in which torch exports them."""
    from torch.utils import _pytree as pytree

    return [tensor.detach().contiguous() for tensor in pytree.tree_leaves(result)]


def output_names(result: Any, inputs: Sequence[str]) -> list[str]:
    """The keys of a flat dict; "output" for one tensor; "output_0", "output_1" and so on for several.

    A name that an input has already gets "_output" behind it: ONNX has one name space for both.
    """
    return [f"{name}_output" if name in inputs else name for name in _plain_names(result)]


def _plain_names(result: Any) -> list[str]:
    if isinstance(result, dict) and all(hasattr(value, "detach") for value in result.values()):
        return [str(key) for key in result]
    count = len(flat_tensors(result))
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
