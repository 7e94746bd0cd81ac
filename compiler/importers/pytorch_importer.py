"""Imports PyTorch: .pt2, .pt, ``module:factory`` and ``file.py:factory``, through torch.onnx.export."""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from compiler.errors import ExtraMissing, SourceError
from compiler.hub import HUB_OPSET, Imported, SourceInfo
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.importers.torch_session import TorchSession, flat_tensors, output_names
from compiler.importers.torch_source import TorchSource, first_cause, load_factory, load_pt, load_pt2
from runtimes.artifact.files import sha256_file
from runtimes.session import TensorSpec

_FACTORY = re.compile(r"^(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*$")
_SEED = 0  # of example inputs made up from input_shapes: tracing needs some, and any will do


class PyTorchImporter:
    """Entry of IMPORTERS; see ``Importer``."""

    name = "pytorch"

    def recognises(self, source: str) -> bool:
        return source.endswith((".pt2", ".pt", ".pth")) or _FACTORY.match(source) is not None

    def load(self, source: str, options: ImportOptions) -> Imported:
        """The reference is the module itself, in eval mode, run by PyTorch.

        Raises:
            SourceError: missing or damaged source, pickles that are not allowed, no example inputs, failed export.
            UnsupportedModel: see ``to_hub``.
            ExtraMissing: torch is not installed.
        """
        _require_torch()
        if source.endswith(".pt2"):
            found = load_pt2(Path(source), options.allow_pickle)
        elif source.endswith((".pt", ".pth")):
            found = load_pt(Path(source), options.allow_pickle)
        else:
            found = load_factory(source)
        proto, reference = _export_program(found) if found.exported else _export_module(found, options)
        digest = sha256_file(found.file) if found.file else hashlib.sha256(proto.SerializeToString()).hexdigest()
        return Imported(to_hub(proto, options), reference, SourceInfo(self.name, source, digest))


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ExtraMissing(
            f"PyTorch sources need torch: {error}.", remedy="Run pip install 'edgewright[compiler]'."
        ) from error


def _export_program(found: TorchSource) -> tuple[onnx.ModelProto, TorchSession]:
    """Export a .pt2, whose dynamic dimensions stay symbols here; ``to_hub`` fixes them."""
    module = found.program.module()
    if found.examples is None:
        raise SourceError(
            f"{found.file} holds no example inputs.",
            remedy="Save it with torch.export.save of a freshly exported program.",
        )
    names = [spec.arg.name for spec in found.program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    metas = {node.name: node.meta["val"] for node in found.program.graph.nodes if node.op == "placeholder"}
    shapes = [tuple(d if isinstance(d, int) else None for d in metas[name].shape) for name in names]
    outputs = _call(module, found.examples)
    proto = _export(found.program, (), names, output_names(outputs, names))
    return proto, _session(module, names, found.examples, shapes, outputs)


def _export_module(found: TorchSource, options: ImportOptions) -> tuple[onnx.ModelProto, TorchSession]:
    """Export a module for exactly the hub's batch: a static export cannot take a dynamic batch for a static one."""
    module = found.program.eval()
    names = _input_names(module, len(found.examples) if found.examples is not None else None)
    examples, free_batch = _examples(module, names, found.examples, options)
    outputs = _call(module, examples)
    shapes: list[tuple[int | None, ...]] = [
        (None, *tensor.shape[1:]) if free_batch else tuple(tensor.shape) for tensor in examples
    ]
    return (
        _export(module, examples, names, output_names(outputs, names)),
        _session(module, names, examples, shapes, outputs),
    )


def _input_names(module: Any, count: int | None) -> list[str]:
    """The names of forward's positional parameters: all that have no default, or the first ``count``."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if count is None:
        return [p.name for p in plain if p.default is p.empty]
    return [plain[i].name if i < len(plain) else f"input_{i}" for i in range(count)]


def _examples(
    module: Any, names: list[str], given: tuple[Any, ...] | None, options: ImportOptions
) -> tuple[tuple[Any, ...], bool]:
    """Example inputs with the hub's shapes, and whether their first dimension is a batch.

    Explicit ``input_shapes`` hold as they are. Otherwise the first dimension is the batch if all inputs share it and
    the module runs with another size there.
    """
    import torch

    wanted = options.input_shapes or {}
    if given is not None and not all(isinstance(tensor, torch.Tensor) for tensor in given):
        raise SourceError("The example inputs are not all tensors.", remedy="Give one tensor per parameter of forward.")
    unknown = sorted(set(wanted) - set(names))
    missing = [name for name in names if given is None and name not in wanted]
    if missing or unknown:
        raise SourceError(
            f"The model's inputs are {names}; shapes are missing for {missing}, unknown are {unknown}.",
            remedy="Return (module, example inputs) from the factory, or give --input-shape NAME=1x3x224x224.",
        )
    generator = torch.Generator().manual_seed(_SEED)
    examples = tuple(
        torch.randn(wanted[name], generator=generator) if name in wanted else given[index]  # type: ignore[index]
        for index, name in enumerate(names)
    )
    if wanted:
        return examples, False
    return _with_batch(module, examples, options.batch)


def _with_batch(module: Any, examples: tuple[Any, ...], batch: int) -> tuple[tuple[Any, ...], bool]:
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in examples}
    if len(sizes) != 1 or None in sizes:
        return examples, False
    # Repeat, then cut: [n, ...] -> [batch, ...]. One more than the batch tells a batch from any other dimension.
    resized = [tuple(t.repeat(size, *[1] * (t.ndim - 1))[:size] for t in examples) for size in (batch + 1, batch)]
    try:
        results = [[tuple(t.shape) for t in flat_tensors(_call(module, tensors))] for tensors in resized]
    except SourceError:
        return examples, False
    if any(a[:1] != (batch + 1,) or b[:1] != (batch,) or a[1:] != b[1:] for a, b in zip(*results, strict=True)):
        return examples, False
    return resized[1], True


def _call(module: Any, examples: tuple[Any, ...]) -> Any:
    import torch

    try:
        with torch.no_grad():
            return module(*examples)
    except Exception as error:  # anybody's code
        raise SourceError(
            f"The module does not run with its example inputs: {first_cause(error)}",
            remedy="Check the example inputs, or the shapes given for them.",
        ) from error


def _export(program: Any, examples: tuple[Any, ...], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """Export in memory. Raises SourceError with the first cause."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself; what matters ends in an error
            exported = torch.onnx.export(
                program,
                examples,
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=HUB_OPSET,
                input_names=inputs,
                output_names=outputs,
            )
    except Exception as error:  # torch.export and its translations raise every kind of error
        raise SourceError(
            f"torch cannot export the model to ONNX: {first_cause(error)}",
            remedy="Rewrite the named operation, or export the model to ONNX yourself and give the .onnx file.",
        ) from error
    assert exported is not None
    return ir.to_proto(exported.model)


def _session(
    module: Any, names: list[str], examples: tuple[Any, ...], shapes: list[tuple[int | None, ...]], outputs: Any
) -> TorchSession:
    free = any(shape and shape[0] is None for shape in shapes)
    specs = tuple(
        TensorSpec(name, str(tensor.numpy().dtype), shape)
        for name, tensor, shape in zip(names, examples, shapes, strict=True)
    )
    results = tuple(
        TensorSpec(
            name, str(tensor.numpy().dtype), (None, *tensor.shape[1:]) if free and tensor.ndim else tuple(tensor.shape)
        )
        for name, tensor in zip(output_names(outputs, names), flat_tensors(outputs), strict=True)
    )
    return TorchSession(module, specs, results)


IMPORTER = PyTorchImporter()
