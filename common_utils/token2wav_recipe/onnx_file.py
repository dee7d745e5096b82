"""A module to a small ONNX file: traced with a free length, large weights stored as bytes."""

import copy
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from osum_echat.errors import ConfigError
from osum_echat.files import whole_file

LEAST_ELEMENTS = 4096                  # smaller weights stay float32
OPSET = 18


def check_installed() -> None:
    """Raise ConfigError, before anything is learnt, where what writes ONNX is missing."""
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ConfigError(f"{name} is missing; pip install -r requirements-train.txt")


def export(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, *, inputs: Sequence[str],
    output: str, dynamic: Mapping[str, Mapping[int, str]], exact: Sequence[str] = (),
) -> None:
    """Write `module` to `path`. dynamic: by input, the axes that are free and their names.

    Weights are kept in 8 bits a number, each row with its own scale, but for those named in
    `exact`; the running model computes in float32.
    """
    check_installed()
    import onnx

    byte_scales = rounded_to_bytes(module := copy.deepcopy(module).eval(), exact)
    axes = {
        name: {axis: torch.export.Dim(word, min=8, max=30_000) for axis, word in free.items()}
        for name, free in dynamic.items()
    }
    program = torch.onnx.export(
        module, example, dynamo=True, input_names=list(inputs), output_names=[output],
        dynamic_shapes=tuple(axes[name] for name in inputs), opset_version=OPSET, verbose=False,
        optimize=False,
    )
    assert program is not None
    graph = program.model_proto
    for weight in list(graph.graph.initializer):
        if weight.name in byte_scales:
            _store_bytes(graph.graph, weight, byte_scales[weight.name])
    onnx.checker.check_model(graph)
    with whole_file(path) as file:
        file.write(graph.SerializeToString())


def rounded_to_bytes(module: nn.Module, exact: Sequence[str]) -> dict[str, Tensor]:
    """Round the large weights to 255 steps a row, in place; returns each one's scales (rows,)."""
    scales = {}
    for name, weight in module.state_dict().items():
        if name in exact or weight.numel() < LEAST_ELEMENTS or not weight.is_floating_point():
            continue
        rows = weight.flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp(min=1e-12)
        rounded = (rows / scale[:, None]).round() * scale[:, None]
        weight.copy_(rounded.view_as(weight))
        scales[name] = scale
    return scales


def _store_bytes(graph: object, weight: object, scale: Tensor) -> None:
    """Put an int8 copy and its scales in place of a float32 weight of an ONNX graph."""
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(weight)
    steps = scale.numpy().astype(np.float32)
    shape = (-1,) + (1,) * (values.ndim - 1)
    numbers = np.clip(np.round(values / steps.reshape(shape)), -127, 127).astype(np.int8)
    name = weight.name  # type: ignore[attr-defined]
    parts = {f"{name}.bytes": numbers, f"{name}.steps": steps,
             f"{name}.zero": np.zeros(len(steps), np.int8)}
    graph.initializer.remove(weight)  # type: ignore[attr-defined]
    graph.initializer.extend(  # type: ignore[attr-defined]
        numpy_helper.from_array(part, part_name) for part_name, part in parts.items()
    )
    node = helper.make_node("DequantizeLinear", list(parts), [name], axis=0)
    graph.node.insert(0, node)  # type: ignore[attr-defined]
