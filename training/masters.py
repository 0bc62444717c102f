"""Weights in float32 beside parameters of a smaller type: steps below a half of its last place add up there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.shards import full


class MasterWeights:
    """What an optimiser moves in place of parameters that a network computes with.

    weights: in order, a parameter of float32 itself, else its float32 copy, which all who train that parameter share.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.weights = [_master(parameter) for parameter in parameters]
        self.pairs = [(p, w) for p, w in zip(parameters, self.weights, strict=True) if p is not w]

    @torch.no_grad()
    def collect(self) -> None:
        """Add gradients to those of the masters."""
        for parameter, weight in self.pairs:
            if parameter.grad is not None:
                found = parameter.grad.to(weight.dtype)
                weight.grad = found if weight.grad is None else weight.grad + found
                parameter.grad = None

    @torch.no_grad()
    def follow(self) -> None:
        """Take over what was written into parameters meanwhile, such as weights that were put back."""
        for parameter, weight in self.pairs:
            weight.copy_(torch.where(weight.to(parameter.dtype) == parameter, weight, parameter.to(weight.dtype)))

    @torch.no_grad()
    def write(self) -> dict[str, float]:
        """Round the masters into the parameters. Returns `weights_moved`, the share of these that are not what they
        were; nothing where all train in float32."""
        moved = []
        for parameter, weight in self.pairs:
            rounded = weight.to(parameter.dtype)
            moved.append(full((rounded != parameter).float().mean()) * parameter.numel())
            parameter.copy_(rounded)
        count = sum(parameter.numel() for parameter, _ in self.pairs)
        return {"weights_moved": float(torch.stack(moved).sum()) / count} if moved else {}

    def tensors(self) -> dict[str, Tensor]:
        """The masters by place, for a checkpoint."""
        return {str(place): weight.detach() for place, (_, weight) in enumerate(self.pairs)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        for place, (_, weight) in enumerate(self.pairs):
            weight.copy_(tensors[str(place)])


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter's float32 copy, which lies at the parameter itself."""
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    if not hasattr(parameter, "master"):
        parameter.master = nn.Parameter(parameter.detach().float())  # type: ignore[attr-defined]
    found: nn.Parameter = parameter.master  # type: ignore[attr-defined]
    return found
