"""How much a forward pass keeps for its backward pass: what a memory budget is divided by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def activation_bytes(forward: Callable[[], Tensor], model: object) -> int:
    """Bytes of the distinct storages that autograd saves while `forward` runs, the model's own weights left out."""
    weights = list(model.parameters()) + list(model.buffers()) if isinstance(model, torch.nn.Module) else []
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # a freed address could come again
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        forward()
    return sum(kept.values())
