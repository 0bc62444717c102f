"""What every trained module has: optimisers, step sizes, clipping, averaged weights, a state that resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, pack_optimizer, unpack_optimizer
from ..models.lora import load_own_weights, own_weights, twin
from ..models.shards import full, is_sharded, shard
from .masters import MasterWeights
from .ranks import here

Groups = dict[str, dict[str, Tensor]]
Trained = TypeVar("Trained", bound=nn.Module)


class NonFiniteError(FloatingPointError):
    """A training has diverged: too many gradients in a row were not finite (the weights were left as they were), or the
    generator makes what nobody can take any more."""


@dataclass(frozen=True)
class LearnerConfig:
    """How one module learns, by AdamW and, where asked for, Muon."""

    learning_rate: float = 5e-5
    """Step size of AdamW; its peak where `planned` is set."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the mean and of the square of the gradient."""
    weight_decay: float = 0.0
    """Decoupled decay of the weights."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; larger ones are scaled down to it."""
    ema: float = 0.0
    """Decay of the averaged weights; 0 keeps none."""
    skips: int = 0
    """Updates in a row whose gradient may be non-finite and is then dropped; one more raises NonFiniteError."""
    planned: int = 0
    """Updates that the step sizes are planned for: 2% linear warm-up, then a cosine to a twentieth; 0: constant."""
    muon_lr: float | None = None
    """Step size of Muon, which then trains the matrices of the transformer's blocks."""
    ema_warmup: bool = False
    """Average over the newest weights alone at first: after k updates the decay is at most (1 + k) / (10 + k)."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_grad_norm <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate and max_grad_norm must be positive and ema in [0, 1): {self}")

    def lr_multiplier(self, update: int) -> float:
        """The step sizes of an update (0 the first), as a share of their peaks."""
        if not self.planned:
            return 1.0
        warm = max(1, self.planned // 50)
        progress = min(1.0, max(0.0, (update - warm) / max(1, self.planned - warm)))
        return min((update + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * progress)))

    def ema_decay(self, updates: int) -> float:
        """Decay of the averaged weights at the last of so many updates."""
        return min(self.ema, (1 + updates) / (10 + updates)) if self.ema_warmup else self.ema

    def optimizers(
        self, module: nn.Module, weights: Sequence[nn.Parameter] | None = None
    ) -> dict[str, torch.optim.Optimizer]:
        """What trains the parameters of a module that require a gradient, by name; weights: others in their place."""
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        named = named if weights is None else dict(zip(named, weights, strict=True))
        matrices = [name for name, p in named.items() if self.muon_lr and p.ndim == 2 and "blocks." in name]
        rest = [p for name, p in named.items() if name not in set(matrices)]
        chosen: dict[str, torch.optim.Optimizer] = {
            "optimizer": torch.optim.AdamW(
                rest, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
            )
        }
        if matrices and self.muon_lr:
            muon = [named[name] for name in matrices]
            chosen["muon"] = torch.optim.Muon(muon, lr=self.muon_lr, weight_decay=self.weight_decay)
        return chosen


class Learner(Generic[Trained]):
    """Optimises one module.

    module: its parameters that require a gradient are trained; all processes of a training (`ranks`) begin with the
    first one's, and average their gradients. `updates`: how many were applied, `skipped`: how many were dropped.
    """

    def __init__(self, module: Trained, config: LearnerConfig) -> None:
        self.module, self.config, self.ranks = module, config, here()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("nothing to train: no parameter of the module requires a gradient")
        if not is_sharded(module):
            self.ranks.copy_first([*module.parameters(), *module.buffers()])
        if self.ranks.sharded and hasattr(module, "shard_blocks"):
            self.parameters = [p for p in shard(module).parameters() if p.requires_grad]
        self.masters = MasterWeights(self.parameters)
        self.parameters = self.masters.weights
        self.optimizers = config.optimizers(module, self.parameters)
        if is_sharded(module):
            _begin(self.optimizers)
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.updates = self.skipped = self._skipped_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss; call it as often as an update has parts, then `optimizer_step`."""
        loss.backward()
        self.masters.collect()

    def optimizer_step(self) -> dict[str, float]:
        """One optimiser step on the gradients gathered, in float32. Returns `grad_norm` before clipping, `skipped` (0
        or 1) and, of weights that are kept in a smaller type, `weights_moved`: the share that moved there."""
        self._average_over_processes()
        norm = float(full(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)))
        finite, moved = math.isfinite(norm), dict[str, float]()
        if finite:
            moved = self._move()
            self.updates, self._skipped_in_a_row = self.updates + 1, 0
            self._average_over_time()
        self.zero_grad()
        if not finite:
            self._skip(norm)
        return {"grad_norm": norm, "skipped": float(not finite), **moved}

    def zero_grad(self) -> None:
        """Forget the gradients gathered."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self, loss: Tensor) -> dict[str, float]:
        """`backward` and `optimizer_step`; returns also `loss`."""
        self.backward(loss)
        return {"loss": float(loss.detach()), **self.optimizer_step()}

    def ema_model(self) -> Trained:
        """A copy of the module with the averaged weights; ValueError when the config keeps none."""
        if not self.ema:
            raise ValueError("no averaged weights are kept: set LearnerConfig.ema")
        module = twin(self.module)
        with torch.no_grad():
            torch._foreach_copy_([p for p in module.parameters() if p.requires_grad], self.ema)
        return module

    def state(self) -> tuple[Groups, dict[str, Any]]:
        """Everything that a bitwise resume needs: groups of tensors (those in use, no copies), and what JSON holds."""
        groups: Groups = {"model": own_weights(self.module)}
        meta: dict[str, Any] = {
            "updates": self.updates,
            "skipped": self.skipped,
            "in_a_row": self._skipped_in_a_row,
        }
        for name, optimizer in self.optimizers.items():
            groups[name], meta[name] = pack_optimizer(optimizer)
        if self.masters.pairs:
            groups["master"] = self.masters.tensors()
        if self.ema:
            groups["mean"] = {str(place): value for place, value in enumerate(self.ema)}
        return groups, meta

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError when it belongs to another module or config."""
        if ("mean" in groups) != bool(self.ema):
            raise CheckpointError("the checkpoint and this config differ in whether averaged weights are kept")
        if ("master" in groups) != bool(self.masters.pairs):
            raise CheckpointError(
                "the checkpoint's weights were kept in another dtype: give that one, or another --out"
            )
        try:
            load_own_weights(self.module, groups["model"])
        except RuntimeError as error:
            what = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"the checkpoint holds weights of another module: {what}") from error
        self.masters.load(groups.get("master", {}))
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(optimizer, groups[name], meta[name])
        for place, value in enumerate(self.ema):
            value.copy_(groups["mean"][str(place)])
        self.updates, self.skipped, self._skipped_in_a_row = meta["updates"], meta["skipped"], meta["in_a_row"]

    @torch.no_grad()
    def _average_over_processes(self) -> None:
        """Every gradient becomes its mean over the processes."""
        if self.ranks.count == 1 or is_sharded(self.module):  # whose backward does it
            return
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.ranks.average([p.grad for p in self.parameters if p.grad is not None])

    def _move(self) -> dict[str, float]:
        self.masters.follow()
        rates = {"optimizer": self.config.learning_rate, "muon": self.config.muon_lr or 0.0}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * self.config.lr_multiplier(self.updates)
            optimizer.step()
        return self.masters.write()

    @torch.no_grad()
    def _average_over_time(self) -> None:
        if self.ema:
            decay = self.config.ema_decay(self.updates)
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)

    def _skip(self, norm: float) -> None:
        self.skipped, self._skipped_in_a_row = self.skipped + 1, self._skipped_in_a_row + 1
        if self._skipped_in_a_row > self.config.skips:
            raise NonFiniteError(
                f"the gradient norm after update {self.updates} is {norm}: lower the learning rate, "
                "or resume from the last checkpoint"
            )


def _begin(optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Give AdamW the state that it would make at its first step, so that a checkpoint's finds its shards there."""
    if list(optimizers) != ["optimizer"]:
        raise ValueError("Muon takes whole matrices: leave muon_lr or --shard out")
    for p in optimizers["optimizer"].param_groups[0]["params"]:
        means = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        optimizers["optimizer"].state[p] = {"step": torch.tensor(0.0), **means}
