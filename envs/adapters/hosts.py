"""Tensors of a device as numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_host(device: torch.device, *values: Any) -> list[Any]:
    """The values with every tensor in them, also in nested dictionaries, as a numpy array; waits for the device once.

    Nothing that is returned is written again: on the CPU an array shares its tensor's memory, which an environment
    never writes in place; from a GPU each goes to pinned memory of its own.
    """
    if device.type != "cpu":
        values = tuple(_changed(value, _sent) for value in values)
        torch.accelerator.current_stream(device).synchronize()
    return [value.numpy() if type(value) is Tensor else _changed(value, Tensor.numpy) for value in values]


def _sent(value: Tensor) -> Tensor:
    return value.to("cpu", non_blocking=True)


def _changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    return value
