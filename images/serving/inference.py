"""The Open Inference Protocol v2, with its extension for binary tensors."""

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from serving.model import Model

INPUT, PROBABILITIES, LABEL = "input", "probabilities", "label"
#: In requests and answers with binary tensors: how long the JSON before them is.
LENGTH_HEADER = "Inference-Header-Content-Length"
SERVER = {"name": "wherry-serving", "version": "1", "extensions": ["binary_tensor_data"]}
_TYPES = {
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_ROWS_MAX = 4096


def metadata(model: Model, name: str) -> dict[str, Any]:
    """Return what the model takes and gives."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": model.platform,
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, model.size]}],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(model.classes)]},
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
        ],
    }


def infer(model: Model, name: str, body: bytes, head_length: str | None) -> tuple[bytes, int | None]:
    """Return the answer to an inference request, and how long its JSON is where binary tensors follow.

    Args:
        model: what is asked.
        name: what it was called.
        body: JSON, and the binary tensors behind it.
        head_length: the header of that name.

    Raises:
        ValueError: something is not as it must be.
    """
    cut = len(body)
    if head_length is not None:
        if not head_length.isdecimal() or int(head_length) > len(body):
            raise ValueError(f"{LENGTH_HEADER} is {head_length!r}, and the body has {len(body)} bytes")
        cut = int(head_length)
    asked = _json(body[:cut])
    found = model.probabilities(_rows(model, asked, body[cut:]))
    outputs = {PROBABILITIES: found, LABEL: model.labels(found)}
    said, binary = [], []
    for wanted, is_binary in _wanted(asked):
        if wanted not in outputs:
            raise ValueError(f"the model has no output {wanted!r}: {', '.join(outputs)}")
        entry, tail = _output(wanted, outputs[wanted], is_binary=is_binary)
        said.append(entry)
        binary.append(tail)
    answer: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": said}
    if "id" in asked:
        answer["id"] = asked["id"]
    head = json.dumps(answer).encode()
    return b"".join((head, *binary)), len(head) if any(binary) else None


def _json(body: bytes) -> dict[str, Any]:
    asked = json.loads(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), list) or len(asked["inputs"]) != 1:
        raise ValueError("send one input")
    if not isinstance(asked["inputs"][0], dict) or asked["inputs"][0].get("name") != INPUT:
        raise ValueError(f"the model's input is called {INPUT!r}")
    return asked


def _rows(model: Model, asked: dict[str, Any], binary: bytes) -> np.ndarray:
    given = asked["inputs"][0]
    kind, shape = given.get("datatype"), given.get("shape")
    if kind not in _TYPES:
        raise ValueError(f"the datatype {kind!r} is not one of {', '.join(_TYPES)}")
    if not isinstance(shape, list) or not shape or not all(isinstance(one, int) and one > 0 for one in shape):
        raise ValueError("the shape is a list of numbers above 0")
    size = _parameters(given).get("binary_data_size")
    if size is None:
        values = np.asarray(given.get("data"), dtype=_TYPES[kind]).reshape(-1)
    elif size != len(binary):
        raise ValueError(f"binary_data_size is {size}, and {len(binary)} bytes follow the JSON")
    else:
        values = np.frombuffer(binary, dtype=_TYPES[kind])
    count = shape[0]
    if count > _ROWS_MAX or values.size != count * model.size or int(np.prod(shape)) != values.size:
        raise ValueError(f"{values.size} values of shape {shape}; the model takes [-1, {model.size}], {_ROWS_MAX} rows")
    return values.reshape(count, model.size)


def _wanted(asked: dict[str, Any]) -> Iterable[tuple[str, bool]]:
    """Give the names of the outputs that are wanted, and whether they are to be binary."""
    always = bool(_parameters(asked).get("binary_data_output"))
    named = asked.get("outputs") or [{"name": PROBABILITIES}, {"name": LABEL}]
    for one in named:
        if not isinstance(one, dict):
            raise TypeError("an output is an object with a name")
        yield str(one.get("name")), bool(_parameters(one).get("binary_data", always))


def _parameters(part: dict[str, Any]) -> dict[str, Any]:
    found = part.get("parameters")
    return found if isinstance(found, dict) else {}


def _output(name: str, value: Any, *, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    if name == LABEL:
        entry = {"name": name, "datatype": "BYTES", "shape": [len(value)]}
        plain, raw = value, b"".join(struct.pack("<I", len(one)) + one for one in (text.encode() for text in value))
    else:
        entry = {"name": name, "datatype": "FP32", "shape": list(value.shape)}
        plain, raw = [float(one) for one in value.reshape(-1)], value.astype("<f4").tobytes()
    if not is_binary:
        return {**entry, "data": plain}, b""
    return {**entry, "parameters": {"binary_data_size": len(raw)}}, raw
