"""Tianshou agents: they learn in vector environments through the procedural API, and act from their weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch import Tensor
from torch.distributions import Independent, Normal

from ..envs.adapters.tianshou import TianshouVectorEnv
from ..envs.vector import TensorVectorEnv
from .recipes import AgentRecipe

AUTORESET = AutoresetMode.DISABLED
"""What `learn` wants of its environment."""
_Call = Callable[["TianshouAgent", int], None]
"""Called with the agent as it is and the number of steps done."""


class TianshouAgent:
    """A trained Gaussian policy: observations [N, M] in, for each row the mean of its actions, within the space."""

    def __init__(self, actor: ContinuousActorProbabilistic, low: Tensor, high: Tensor) -> None:
        self.actor, self.low, self.high = actor, low, high

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Actions [N, ...] on the observation's device."""
        (mean, _), _ = self.actor(observation)
        return torch.minimum(torch.maximum(mean, self.low.to(mean)), self.high.to(mean))

    def tensors(self) -> dict[str, Tensor]:
        """The weights, for safetensors."""
        return dict(self.actor.state_dict())


def learn(
    recipe: AgentRecipe,
    vector: TensorVectorEnv[Any],
    seed: int,
    *,
    steps: int | None = None,
    call: _Call | None = None,
    every: int = 0,
) -> TianshouAgent:
    """Train PPO in `vector`, of recipe.streams rows and DISABLED autoreset, with a Box of actions. steps: if not the
    recipe's own number.

    call: called every `every` steps, before the first collection that finds them done, and at the end.
    """
    steps = recipe.steps if steps is None else steps
    torch.manual_seed(seed)
    np.random.seed(seed)  # Tianshou draws its minibatches from it
    agent = _agent(recipe, vector)
    due = every

    def turn(epoch: int, done: int) -> None:
        nonlocal due
        if call is not None and every and done >= due:
            due += every
            call(agent, done)

    env = TianshouVectorEnv(vector)
    rollout = min(recipe.rollout, steps)
    space = vector.single_action_space
    policy = ProbabilisticActorPolicy(actor=agent.actor, dist_fn=_gaussian, action_space=space, action_scaling=False)
    critic = ContinuousCritic(preprocess_net=_net(recipe, vector))
    rate = AdamOptimizerFactory(lr=recipe.policy["learning_rate"])
    algorithm = PPO(policy=policy, critic=critic, optim=rate, **recipe.settings)
    collector = Collector(algorithm, env, VectorReplayBuffer(rollout, vector.num_envs))
    collector.reset(gym_reset_kwargs={"seed": seed})
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=steps,
            collection_step_num_env_steps=rollout,
            update_step_num_repetitions=recipe.epochs,
            batch_size=recipe.batch,
            training_fn=turn,
            test_in_training=False,
            verbose=False,
            show_progress=False,
        )
    )
    turn(1, steps)
    return agent


def restored(recipe: AgentRecipe, vector: TensorVectorEnv[Any], tensors: Mapping[str, Tensor]) -> TianshouAgent:
    """The agent whose `tensors()` these were, for environments with the spaces of `vector`."""
    agent = _agent(recipe, vector)
    agent.actor.load_state_dict(tensors)
    return agent


def _agent(recipe: AgentRecipe, vector: TensorVectorEnv[Any]) -> TianshouAgent:
    space: Any = vector.single_action_space
    actor = ContinuousActorProbabilistic(
        preprocess_net=_net(recipe, vector), action_shape=space.shape, unbounded=True
    ).to(vector.device)
    with torch.no_grad():
        actor.sigma_param.fill_(recipe.policy["log_std_init"])
        actor.mu.model[-1].weight.mul_(0.01)
    return TianshouAgent(actor, torch.as_tensor(space.low), torch.as_tensor(space.high))


def _net(recipe: AgentRecipe, vector: TensorVectorEnv[Any]) -> Net:
    shape: Any = vector.single_observation_space.shape
    return Net(state_shape=shape, hidden_sizes=recipe.policy["hidden_sizes"], activation=torch.nn.Tanh)


def _gaussian(parts: tuple[Tensor, Tensor]) -> Independent:
    return Independent(Normal(*parts), 1)
