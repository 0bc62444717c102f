"""Stable-Baselines3 agents: they learn in any of the vector environments, and act from their weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import stable_baselines3
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ..envs.adapters.features import ClipFeatures
from ..envs.adapters.sb3 import SB3VecEnv
from ..envs.vector import TensorVectorEnv
from .recipes import AgentRecipe

AUTORESET = AutoresetMode.SAME_STEP
"""What `learn` wants of its environment."""
_Call = Callable[["SB3Agent", int], None]
"""Called with the agent as it is and the number of steps done."""


class SB3Agent:
    """A trained policy: observations [N, M] in, for each row the action that it thinks best."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def act(self, observation: Tensor) -> Tensor:
        """Actions [N, ...] on the observation's device."""
        actions, _ = self.policy.predict(observation.cpu().numpy(), deterministic=True)
        return torch.as_tensor(actions, device=observation.device)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, for safetensors."""
        return dict(self.policy.state_dict())


def learn(
    recipe: AgentRecipe,
    vector: TensorVectorEnv[Any],
    seed: int,
    *,
    steps: int | None = None,
    call: _Call | None = None,
    every: int = 0,
) -> SB3Agent:
    """Train in `vector`, of recipe.streams rows and SAME_STEP autoreset. steps: if not the recipe's own number.

    call: called every `every` steps, as soon as a step of all rows has reached them.
    """
    algorithm = _class(recipe)(
        "MlpPolicy",
        SB3VecEnv(vector),
        seed=seed,
        device=vector.device,
        policy_kwargs=policy_arguments(recipe, vector),
        **recipe.settings,
    )
    algorithm.learn(recipe.steps if steps is None else steps, callback=_Calls(call, every))
    return SB3Agent(algorithm.policy)


def restored(recipe: AgentRecipe, vector: TensorVectorEnv[Any], tensors: Mapping[str, Tensor]) -> SB3Agent:
    """The agent whose `tensors()` these were, for environments with the spaces of `vector`."""
    spaces = vector.single_observation_space, vector.single_action_space
    kind = _class(recipe).policy_aliases["MlpPolicy"]
    policy = kind(*spaces, lambda _: 0.0, **policy_arguments(recipe, vector)).to(vector.device)
    policy.load_state_dict(tensors)
    policy.set_training_mode(False)
    return SB3Agent(policy)


def policy_arguments(recipe: AgentRecipe, vector: Any) -> dict[str, Any]:
    """`policy_kwargs` of the recipe's policy in this environment."""
    if not recipe.clip_features:
        return dict(recipe.policy)
    shapes = {"columns": vector.columns, "clip_shape": vector.clip_shape}
    return {**recipe.policy, "features_extractor_class": ClipFeatures, "features_extractor_kwargs": shapes}


def _class(recipe: AgentRecipe) -> Any:
    return getattr(stable_baselines3, recipe.algorithm)


class _Calls(BaseCallback):
    def __init__(self, call: _Call | None, every: int) -> None:
        super().__init__()
        self.call, self.every, self.due = call, every, every

    def _on_step(self) -> bool:
        if self.call is not None and self.every and self.num_timesteps >= self.due:
            self.due += self.every
            self.call(SB3Agent(self.model.policy), self.num_timesteps)
        return True
