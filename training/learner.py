"""What every trained module has: optimiser, clipping, averaged weights, a state that resumes exactly."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, pack_optimizer, unpack_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

Groups = dict[str, dict[str, Tensor]]
Trained = TypeVar("Trained", bound=nn.Module)


class NonFiniteError(FloatingPointError):
    """A training has diverged: too many gradients in a row were not finite (the weights were left as they were), or the
    generator makes what nobody can take any more."""


@dataclass(frozen=True)
class LearnerConfig:
    """How one module learns, by AdamW."""

    learning_rate: float = 5e-5
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the mean and of the square of the gradient."""
    weight_decay: float = 0.0
    """Decoupled decay of the weights."""
    clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down to it."""
    ema: float = 0.0
    """Decay of the averaged weights; 0 keeps none."""
    skips: int = 0
    """Updates in a row whose gradient may be non-finite and is then dropped; one more raises NonFiniteError."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.clip <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate and clip must be positive and ema in [0, 1): {self}")


class Learner(Generic[Trained]):
    """Optimises one module.

    module: its parameters that require a gradient are trained. accelerator: the trainer's, where there are several
    processes; gradients are averaged over them. `updates`: how many were applied, `skipped`: how many were dropped.
    """

    def __init__(self, module: Trained, config: LearnerConfig, accelerator: Accelerator | None = None) -> None:
        self.module, self.config, self.accelerator = module, config, accelerator
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("nothing to train: no parameter of the module requires a gradient")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.mean = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.updates = self.skipped = self._skipped_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss; call it as often as an update has parts, then `apply`."""
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def apply(self) -> dict[str, float]:
        """One optimiser step on the gradients gathered. Returns `grad_norm` before clipping, and `skipped` (0 or 1)."""
        self._average_over_processes()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
            self._average_over_time()
            self.updates, self._skipped_in_a_row = self.updates + 1, 0
        self.optimizer.zero_grad(set_to_none=True)
        if not finite:
            self._skip(norm)
        return {"grad_norm": norm, "skipped": float(not finite)}

    def step(self, loss: Tensor) -> dict[str, float]:
        """`backward` and `apply`; returns also `loss`."""
        self.backward(loss)
        return {"loss": float(loss.detach()), **self.apply()}

    def averaged(self) -> Trained:
        """A copy of the module with the averaged weights; ValueError when the config keeps none."""
        if not self.mean:
            raise ValueError("no averaged weights are kept: set LearnerConfig.ema")
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            torch._foreach_copy_([p for p in module.parameters() if p.requires_grad], self.mean)
        return module

    def state(self) -> tuple[Groups, dict[str, Any]]:
        """Everything that a bitwise resume needs: groups of tensors (those in use, no copies), and what JSON holds."""
        tensors, settings = pack_optimizer(self.optimizer)
        groups = {"model": dict(self.module.state_dict()), "optimizer": tensors}
        if self.mean:
            groups["mean"] = {str(place): value for place, value in enumerate(self.mean)}
        counts = {"updates": self.updates, "skipped": self.skipped, "in_a_row": self._skipped_in_a_row}
        return groups, {"optimizer": settings, **counts}

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError when it belongs to another module or config."""
        if ("mean" in groups) != bool(self.mean):
            raise CheckpointError("the checkpoint and this config differ in whether averaged weights are kept")
        try:
            self.module.load_state_dict(groups["model"])
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint holds weights of another module: {error}") from error
        unpack_optimizer(self.optimizer, groups["optimizer"], meta["optimizer"])
        for place, value in enumerate(self.mean):
            value.copy_(groups["mean"][str(place)])
        self.updates, self.skipped, self._skipped_in_a_row = meta["updates"], meta["skipped"], meta["in_a_row"]

    @torch.no_grad()
    def _average_over_processes(self) -> None:
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(self.accelerator.reduce(parameter.grad, "mean"))

    @torch.no_grad()
    def _average_over_time(self) -> None:
        if self.mean:
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - self.config.ema)

    def _skip(self, norm: float) -> None:
        self.skipped, self._skipped_in_a_row = self.skipped + 1, self._skipped_in_a_row + 1
        if self._skipped_in_a_row > self.config.skips:
            raise NonFiniteError(
                f"the gradient norm after update {self.updates} is {norm}: lower the learning rate, "
                "or resume from the last checkpoint"
            )
