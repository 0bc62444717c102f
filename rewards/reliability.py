"""Inter-Reliability and balance (Stream-R1, 2605.03849): the trainer's weight per clip, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint import refuse_missing


@dataclass(frozen=True)
class BalanceConfig:
    """window: steps over which a trend is measured (even). spread: lambda, the price of axes that improve unevenly.
    beta: slope of the exponent. bound: the exponent beta r is clamped to +-bound, so reliability lies in
    [exp(-bound), exp(bound)]; at 2 that is .135 to 7.39 (unbounded, a score of 2 sigma would weigh 55)."""

    window: int = 50
    spread: float = 0.5
    beta: float = 2.0
    bound: float = 2.0

    def __post_init__(self) -> None:
        if self.window < 2 or self.window % 2:
            raise ValueError(f"the balance window has two halves: give an even number of steps, not {self.window}")


@dataclass(frozen=True)
class BalanceState:
    """history: mean z-scores [window, A] of the last updates, oldest first (zeros before the first). count: updates."""

    history: Tensor
    count: int = 0

    @classmethod
    def open(cls, axes: int, config: BalanceConfig, device: torch.device | str = "cpu") -> BalanceState:
        return cls(torch.zeros(config.window, axes, device=device))

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint; `from_tensors` is the inverse."""
        return {"history": self.history, "count": torch.tensor(self.count)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> BalanceState:
        refuse_missing("balance", tensors, ("history", "count"))
        return cls(tensors["history"], int(tensors["count"]))


def _this_rank(mean: Tensor) -> Tensor:
    return mean


def balance(
    scores: Tensor,
    state: BalanceState,
    config: BalanceConfig,
    reduce: Callable[[Tensor], Tensor] = _this_rank,
) -> tuple[Tensor, BalanceState]:
    """Reliability exp(clamp(beta r, -bound, bound)) per clip, r = mean_d(score_d) - lambda std_d(delta_d).

    scores: z-scored [B, A]. reduce: mean of a tensor [A] over all ranks. delta_d: newer half minus older half of the
    window's means per axis, from the update on that fills the window (0 before); std: population, over axes. Returns
    reliability [B] and the next state; call it once per update.
    """
    if config.window != len(state.history) or scores.shape[-1] != state.history.shape[-1]:
        raise ValueError(
            f"balance history {tuple(state.history.shape)} does not fit a window of {config.window} and scores of "
            f"{scores.shape[-1]} axes: open a new state"
        )
    scores = scores.detach().float()
    if not bool(scores.isfinite().all()):
        raise ValueError(f"scores {list(scores.shape)} hold NaN or infinity: one update would spoil the whole history")
    step = reduce(scores.mean(dim=0)).to(state.history.device)
    after = BalanceState(torch.cat([state.history[1:], step[None]]), state.count + 1)
    r = scores.mean(dim=-1)
    if after.count >= config.window:
        r = r - config.spread * _trend(after.history).std(correction=0).to(r.device)
    return (config.beta * r).clamp(-config.bound, config.bound).exp(), after


def _trend(history: Tensor) -> Tensor:
    """delta_d [A]: mean of the newer half of history [window, A] minus mean of the older half."""
    older, newer = history.chunk(2)
    return newer.mean(dim=0) - older.mean(dim=0)
