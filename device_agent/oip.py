"""The wire format of the Open Inference Protocol v2: JSON tensors and the binary tensor data extension, as pure functions.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's extension_binary_data.md:
the body is a JSON header of ``Inference-Header-Content-Length`` bytes, then the raw little-endian tensors in order.
"""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from device_agent.errors import RequestError
from runtimes.artifact.manifest import InputSpec, OutputSpec
from runtimes.session import Array, Feeds

_TYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {numpy: oip for oip, numpy in _TYPES.items()}
MAX_RANK = 16


class Asked(NamedTuple):
    """A decoded request. ``binary`` names the outputs wanted as raw bytes; ``outputs`` is empty for all of them.

    ``timeout_s``: the client's own limit (Triton's request parameter ``timeout``, microseconds); None leaves it to the model's.
    """

    id: str | None
    feeds: dict[str, Array]
    outputs: tuple[str, ...]
    binary: frozenset[str]
    binary_default: bool
    timeout_s: float | None = None


def decode_request(body: bytes, header_bytes: int | None) -> Asked:
    """Parse a request body. Raises RequestError (400) for anything that the protocol does not allow."""
    if header_bytes is not None and not 0 <= header_bytes <= len(body):
        raise _bad(f"Inference-Header-Content-Length is {header_bytes}, the body has {len(body)} bytes")
    try:
        document = json.loads(body if header_bytes is None else body[:header_bytes])
    except (ValueError, RecursionError) as error:
        raise _bad(f"the JSON part cannot be read: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise _bad('the body needs an object with an "inputs" list')
    raw = memoryview(body)[header_bytes:] if header_bytes is not None else memoryview(b"")
    feeds, used = _inputs(document["inputs"], raw)
    if used != len(raw):
        raise _bad(f"{len(raw) - used} bytes follow the last binary tensor")
    return _asked(document, feeds)


def _asked(document: dict[str, Any], feeds: dict[str, Array]) -> Asked:
    wanted = document.get("outputs") or []
    if not isinstance(wanted, list) or not all(isinstance(o, dict) and isinstance(o.get("name"), str) for o in wanted):
        raise _bad('"outputs" must list objects with a name')
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _bad('"id" must be a string')
    return Asked(
        identity,
        feeds,
        tuple(o["name"] for o in wanted),
        frozenset(o["name"] for o in wanted if _parameters(o).get("binary_data") is True),
        _parameters(document).get("binary_data_output") is True,
        _timeout_s(_parameters(document).get("timeout")),
    )


def _timeout_s(value: object) -> float | None:
    """Source: Triton's extension_schedule_policy.md: microseconds, as a number or a string; 0 asks for none."""
    if value is None or value == 0:
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 12:
        raise _bad(f"the parameter timeout is {text[:40]!r}, not a number of microseconds")
    return int(text) / 1e6


def _inputs(entries: list[Any], raw: memoryview) -> tuple[dict[str, Array], int]:
    feeds: dict[str, Array] = {}
    used = 0
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise _bad("every input needs a name")
        name = entry["name"]
        if name in feeds:
            raise _bad(f"input {name!r} is given twice")
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            feeds[name] = _from_json(name, entry)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(raw) - used:
            raise _bad(f"input {name!r}: binary_data_size {size!r} does not fit the body")
        feeds[name] = _from_bytes(name, entry, raw[used : used + size])
        used += size
    return feeds, used


def _from_json(name: str, entry: dict[str, Any]) -> Array:
    dtype, shape = _dtype(name, entry), _shape(name, entry)
    try:
        values = np.asarray(entry["data"])
    except KeyError as error:
        raise _bad(f"input {name!r} has no data") from error
    except (ValueError, OverflowError) as error:
        raise _bad(f"input {name!r}: the data is ragged or not numeric") from error
    wanted_kinds = {"b": "b", "f": "fiu"}.get(dtype.kind, "iu")
    if values.size and values.dtype.kind not in wanted_kinds:
        raise _bad(f"input {name!r}: the data does not hold values of {entry['datatype']}")
    if values.size != math.prod(shape):
        raise _bad(f"input {name!r}: {values.size} values for shape {list(shape)}")
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise _bad(f"input {name!r}: a value does not fit {entry['datatype']}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused by the guard
        return values.astype(dtype).reshape(shape)


def _from_bytes(name: str, entry: dict[str, Any], raw: memoryview) -> Array:
    dtype, shape = _dtype(name, entry), _shape(name, entry)
    if "data" in entry:
        raise _bad(f"input {name!r} has both data and binary data")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise _bad(f"input {name!r}: {len(raw)} bytes for {entry['datatype']}{list(shape)}")
    if dtype.kind == "b" and any(b > 1 for b in raw):
        raise _bad(f"input {name!r}: a BOOL is neither 0 nor 1")
    # A copy: frombuffer would be read-only, unaligned, and keep the whole body alive.
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _dtype(name: str, entry: dict[str, Any]) -> np.dtype[Any]:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise _bad(f"input {name!r}: datatype {datatype!r} is not one of {', '.join(_TYPES)}")
    return np.dtype(_TYPES[datatype])


def _shape(name: str, entry: dict[str, Any]) -> tuple[int, ...]:
    shape = entry.get("shape")
    sizes_ok = isinstance(shape, list) and all(
        isinstance(d, int) and not isinstance(d, bool) and 0 <= d < 1 << 31 for d in shape
    )
    if not isinstance(shape, list) or not sizes_ok or len(shape) > MAX_RANK:
        raise _bad(f"input {name!r}: shape {str(shape)[:100]} is not a list of sizes")
    return tuple(shape)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _bad('"parameters" must be an object')
    return parameters


def encode_response(
    asked: Asked, outputs: Feeds, *, model: str, version: str, answered_by: str | None = None
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part if raw tensors follow it (None for plain JSON).

    Args:
        answered_by: the step of the fallback chain that stood in, said in the response's parameters.

    Raises:
        RequestError: an output was asked for that the model does not have.
    """
    names = asked.outputs or tuple(outputs)
    unknown = [n for n in names if n not in outputs]
    if unknown:
        raise _bad(f"the model has no output {unknown[0]!r}; it has {sorted(outputs)}")
    entries: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name in names:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(str(array.dtype))}
        if name in asked.binary or (asked.binary_default and not asked.outputs):
            raw.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if asked.id is not None:
        document["id"] = asked.id
    if answered_by is not None:
        document["parameters"] = {"answered_by": answered_by}
    header = json.dumps(document, separators=(",", ":")).encode()
    return b"".join([header, *raw]), len(header) if raw else None


def datatype_of(dtype: str) -> str:
    """numpy's name to the protocol's. Raises ValueError for a dtype that the protocol has no name for."""
    if dtype not in _NAMES:
        raise ValueError(f"{dtype} has no Open Inference Protocol datatype")
    return _NAMES[dtype]


def describe(spec: InputSpec | OutputSpec) -> dict[str, Any]:
    """A tensor in the model's metadata; -1 where the size is free, as the protocol says."""
    return {
        "name": spec.name,
        "datatype": datatype_of(spec.dtype),
        "shape": [-1 if d is None else d for d in spec.shape],
    }


def _bad(reason: str) -> RequestError:
    return RequestError(f"The request is not valid: {reason}.", remedy="Follow the Open Inference Protocol v2.")
