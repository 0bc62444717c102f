"""How much a forward pass keeps for its backward pass, and a batch cut so that it fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from ..models.prompts import PromptBatch

Forward = Callable[[Tensor, PromptBatch], Tensor]


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


class Microbatcher:
    """Cuts clips [B, ...] and their prompts into parts whose forward pass keeps no more than a budget.

    budget: bytes; None: no cut.   model: whose weights do not count.
    """

    def __init__(self, budget: int | None, model: object) -> None:
        self.budget, self.model = budget, model
        self._row_bytes: dict[Hashable, int] = {}

    def split(self, video: Tensor, prompts: PromptBatch, forward: Forward) -> list[tuple[Tensor, PromptBatch]]:
        """The parts, each of one clip at least, in order; forward is measured on one clip of each shape."""
        if self.budget is None or len(video) == 1:
            return [(video, prompts)]
        each = len(prompts.text) // len(video)
        first = prompts.take(torch.arange(each))
        kind = (video.shape[1:], video.dtype, first.embeds.shape)
        if kind not in self._row_bytes:
            one = video[:1].detach().clone().requires_grad_()
            self._row_bytes[kind] = activation_bytes(lambda: forward(one, first), self.model)
        rows = max(1, self.budget // max(1, self._row_bytes[kind]))
        if rows >= len(video):
            return [(video, prompts)]
        return [
            (video[part], prompts.take((part[:, None] * each + torch.arange(each)).flatten()))
            for part in torch.arange(len(video)).split(rows)
        ]
