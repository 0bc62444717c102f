"""Policy gradient on the sampler's Gaussian steps, of which the last has no noise and is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..envs.streaming import StreamingEnv
from ..models.generator import Generator
from ..models.sampler import FlowSDE
from ..noise import fold, uniform
from .direction import Needs, TrainingBatch, TrainingSample, clipped_weight, log_ratio, policy_direction
from .rollout import GatheredStep, Rollout, gather_steps


@dataclass(frozen=True)
class PolicyGradient:
    """S denoising steps, 0 to S - 2 stochastic. On-policy, a method without `clip_coef` needs no ratio."""

    needs: ClassVar[Needs] = Needs()
    kind: Literal["policy"] = "policy"
    timesteps_per_update: int = 1
    """Denoising steps of each chunk, drawn at random from `train_timesteps`, that an update looks at; each costs a
    backward."""
    train_timesteps: tuple[int, ...] = ()
    """Stochastic denoising steps to draw from, -1 the last of them; empty: all."""
    rescale: bool = True
    """Even out the size of the gradient over denoising steps."""
    clip_coef: float = 0.0
    """PPO clipping of the ratio; its log-probability is a mean over elements, so 1e-4 is usual. 0: no ratio."""
    noise_level: float = 0.0
    """Noise of Flow-GRPO's SDE, by which rollouts are sampled then; 0: consistency sampling."""

    def __post_init__(self) -> None:
        if self.clip_coef < 0 or self.noise_level < 0:
            raise ValueError(f"clip_coef and noise_level are not below 0: {self}")

    def actor(self, generator: Generator, shared_steps: int = 0) -> Generator:
        """The generator that plays the rollouts; ValueError where the timesteps do not fit it."""
        drawn = self._drawn(generator, shared_steps)
        if not 1 <= self.timesteps_per_update <= len(drawn):
            raise ValueError(f"timesteps_per_update must lie in 1 .. {len(drawn)}, not {self.timesteps_per_update}")
        return replace(generator, kernel=FlowSDE(self.noise_level)) if self.noise_level else generator

    def check(self, config: Any) -> None:
        """ValueError where the policy that acted is left behind without clipping."""
        if config.epochs > 1 and not self.clip_coef:
            raise ValueError("several epochs leave the policy that acted behind: set the policy gradient's clip_coef")

    def training_samples(self, played: Rollout, keys: Tensor, actor: Generator, env: StreamingEnv) -> TrainingBatch:
        """`timesteps_per_update` minibatches; no denoising step twice for a chunk."""
        allowed = torch.tensor(self._drawn(actor, played.shared_steps), device=keys.device)
        first = (uniform(fold(keys, 1), 0, 0, (len(played.steps),)) * len(allowed)).long()
        minibatches = [
            [
                self._sample(gather_steps(step.denoising_steps, allowed[(first[:, place] + offset) % len(allowed)]))
                for place, step in enumerate(played.steps)
            ]
            for offset in range(self.timesteps_per_update)
        ]
        return TrainingBatch(minibatches)

    def _drawn(self, generator: Generator, shared_steps: int) -> list[int]:
        """The steps to draw from; those whose noise a group shares teach nothing, and are none."""
        steps = range(max(0, shared_steps - 1), len(generator.sigmas) - 1)
        last = len(generator.sigmas) - 1
        named = [step + last if step < 0 else step for step in self.train_timesteps]
        if any(step not in steps for step in named):
            raise ValueError(
                f"train_timesteps={self.train_timesteps}: those of a stream are {steps.start} .. {last - 1}"
            )
        if len(set(named)) < len(named):
            raise ValueError(f"train_timesteps={self.train_timesteps} names a step twice")
        return named or list(steps)

    def _sample(self, step: GatheredStep) -> TrainingSample:
        force = torch.as_tensor(step.kernel.pull / step.kernel.std)
        return TrainingSample(step.x, step.sigma, step, step.x0, force if self.rescale else force**2)

    def loss_gradient(
        self, sample: TrainingSample, x0: Tensor, old_x0: Tensor, advantage: Tensor, weight: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See Direction; weight enters the ratio as well."""
        step: GatheredStep = sample.target
        ratio = log_ratio(step.kernel, step.x_next, step.x, x0, old_x0, weight).exp()
        scale = clipped_weight(ratio, advantage, self.clip_coef) if self.clip_coef else torch.ones_like(ratio)
        direction = policy_direction(step.kernel, step.x_next, step.x, x0, scale * advantage, self.rescale)
        return weight * direction, {
            "losses/approx_kl": (ratio - 1 - ratio.log()).mean(),
            "losses/clipfrac": (scale == 0).float().mean(),
            "losses/ratio_max_error": (ratio - 1).abs().max(),
        }
