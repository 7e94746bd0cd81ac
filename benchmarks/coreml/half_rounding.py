"""How far float16 may take a PyTorch net from its float32 answers: a probabilistic bound, measured on the net itself.

Model of rounding (Higham, Accuracy and Stability of Numerical Algorithms, 2.4): an operation yields y (1 + d) with |d| <= u and
u = 2**-11, below the normal numbers y + e with |e| <= 2**-25. To first order the error of an output is the sum of all these
roundings, each times its derivative. With independent roundings of mean zero (Higham and Mary 2019, A new approach to probabilistic
rounding error analysis, SIAM J. Sci. Comput. 41, A2815) Hoeffding's inequality says that it exceeds t s with a chance of at most
2 exp(-t**2 / 2), where s**2 is the sum of the squares of the largest roundings, each times its derivative. That s is what the
error has as its standard deviation when every rounding is its largest with a random sign: so the net runs a few times with every
operation's result and every parameter times (1 + u) or (1 - u).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNIT = 2.0**-11  # half the distance from 1 to the next float16 (IEEE 754 binary16)
SMALLEST = 2.0**-25  # half the distance between subnormal numbers
DRAWS = 8
CHANCE = 1e-3  # that any output of a correct net exceeds the bound
CAP = 0.05  # of the largest output: what loses more is of no use, whatever explains it


def rounding_bound(net: Any, x: Any, draws: int = DRAWS, *, of_range: bool = False) -> float:
    """Relative to the largest output of ``net(x)``, one float32 tensor; CAP at most, and CAP where the noise run is not finite.

    ``of_range``: relative to the range of the output (largest less smallest) instead, as the build's parity is.

    Sums within an operation are taken to be in float32 or better, as on Apple's hardware and in the evaluator.
    """
    import torch

    with torch.no_grad():
        exact = net(x).double()
        noise = torch.stack([_perturbed(net, x, seed).double() - exact for seed in range(draws)])
    spread = float(noise.square().mean(0).max().sqrt())
    largest = float(exact.max() - exact.min()) if of_range else float(exact.abs().max())
    times = math.sqrt(2 * math.log(2 * exact.numel() / CHANCE))
    bound = times * spread / largest if largest else math.inf
    return min(bound, CAP) if math.isfinite(bound) else CAP


def _perturbed(net: Any, x: Any, seed: int) -> Any:
    """The net's answer with every parameter and every result off by one largest rounding of random sign."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = torch.Generator().manual_seed(seed)

    def shake(tensor: Any) -> None:
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
        tensor.add_(signs * (tensor.abs() * UNIT).clamp_min(SMALLEST))

    class Shaken(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = func(*args, **(kwargs or {}))
            for result, declared in zip(_tensors(results), func._schema.returns, strict=False):
                alias = declared.alias_info
                rounds = alias is None or alias.is_write  # a view rounds nothing
                if rounds and isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                    shake(result)
            return results

    rounded = copy.deepcopy(net)
    for parameter in (*rounded.parameters(), *rounded.buffers()):
        if parameter.dtype == torch.float32:
            shake(parameter)
    with steps_apart(), Shaken():  # type: ignore[no-untyped-call]
        return rounded(x)


@contextmanager
def steps_apart() -> Iterator[None]:
    """PyTorch without the kernels that do an LSTM or an encoder's layer in one: no step could be seen, nor converted."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _tensors(results: Any) -> tuple[Any, ...]:
    return tuple(results) if isinstance(results, tuple | list) else (results,)
