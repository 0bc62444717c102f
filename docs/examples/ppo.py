"""PPO in one file, for any environment with a Box or Discrete action space, with Gymnasium's own wrappers only.

    python docs/examples/ppo.py --env-id CartPole-v1
    python docs/examples/ppo.py --env-id reelgym/StreamSteer-v0 --gamma 1
    python docs/examples/ppo.py --env-id reelgym/StreamDetect-v0 --gamma 1 --env-kwargs '{"clips": 64}'

It knows nothing of video: observations are flattened and normalised, and a network of two layers acts. T steps of N
environments make a batch; every array below is [T, N, ...] until it is cut into minibatches.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium import wrappers
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

import reelgym  # noqa: F401  (registers the environments)

LIMIT = 10.0
"""Standard deviations at which a normalised observation is cut off."""


@dataclass
class Args:
    env_id: str = "CartPole-v1"
    env_kwargs: str = "{}"
    """What gymnasium.make is given besides, as JSON."""
    total_steps: int = 100_000
    """Of all environments together."""
    num_envs: int = 8
    num_steps: int = 128
    """Of each environment between two updates."""
    learning_rate: float = 3e-4
    """At the start; it falls to 0 on a line."""
    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 4
    """Passes over a batch."""
    minibatches: int = 4
    clip: float = 0.2
    """How far a probability may move, as a ratio, before its gradient is cut."""
    entropy_weight: float = 0.01
    value_weight: float = 0.5
    max_grad_norm: float = 0.5
    width: int = 64
    seed: int = 0
    logdir: Path | None = None
    """Folder for TensorBoard; none is written by default."""


def make_env(args: Args) -> gymnasium.Env[Any, Any]:
    """One environment in the wrappers that PPO likes."""
    env = wrappers.FlattenObservation(gymnasium.make(args.env_id, **json.loads(args.env_kwargs)))
    env = wrappers.RecordEpisodeStatistics(env)
    if isinstance(env.action_space, Box):
        env = wrappers.ClipAction(env)
    env = wrappers.NormalizeObservation(env)
    return wrappers.TransformObservation(env, lambda seen: np.clip(seen, -LIMIT, LIMIT), env.observation_space)


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """A linear layer that begins orthogonal."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def network(inputs: int, width: int, outputs: int, gain: float) -> nn.Sequential:
    return nn.Sequential(layer(inputs, width), nn.Tanh(), layer(width, width), nn.Tanh(), layer(width, outputs, gain))


class Agent(nn.Module):
    """Two networks: what to do, and what it is worth."""

    def __init__(self, observed: Box, acted: gymnasium.Space[Any], width: int) -> None:
        super().__init__()
        self.box = acted.shape if isinstance(acted, Box) else None
        size = int(np.prod(self.box)) if self.box is not None else int(acted.n)
        self.actor = network(observed.shape[0], width, size, 0.01)
        self.critic = network(observed.shape[0], width, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(size))

    def policy(self, observation: Tensor) -> Distribution:
        out = self.actor(observation)
        if self.box is None:
            return Categorical(logits=out)
        normal = Normal(out.unflatten(-1, self.box), self.log_std.exp().view(self.box))
        return Independent(normal, len(self.box))

    def value(self, observation: Any) -> Tensor:
        return self.critic(torch.as_tensor(observation, dtype=torch.float32)).squeeze(-1)


@torch.no_grad()
def rollout(agent: Agent, envs: SyncVectorEnv, observation: Any, args: Args, returns: deque[float]) -> Any:
    """T steps: a dictionary of what happened, and the observation after them. Appends to the returns of episodes."""
    steps: list[dict[str, Tensor]] = []
    for _ in range(args.num_steps):
        seen = torch.as_tensor(observation, dtype=torch.float32)
        policy = agent.policy(seen)
        action = policy.sample()
        observation, reward, terminated, truncated, info = envs.step(action.numpy())
        if truncated.any():  # an episode that was cut off would have gone on to earn what its last state is worth
            cut = np.flatnonzero(truncated)
            reward[cut] += args.gamma * agent.value(np.stack(list(info["final_obs"][cut]))).numpy()
        if "final_info" in info:
            returns.extend(info["final_info"]["episode"]["r"][info["final_info"]["_episode"]].tolist())
        steps.append(
            {
                "observation": seen,
                "action": action,
                "log_prob": policy.log_prob(action),
                "value": agent.value(seen),
                "reward": torch.as_tensor(reward, dtype=torch.float32),
                "done": torch.as_tensor(terminated | truncated),
            }
        )
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}, observation


def advantages(reward: Tensor, value: Tensor, done: Tensor, last: Tensor, gamma: float, decay: float) -> Tensor:
    """Generalised advantage estimation, [T, N]; last [N] is the value of the observation after the batch."""
    out, ahead, following = torch.zeros_like(reward), torch.zeros_like(last), last
    for step in reversed(range(len(reward))):
        goes_on = (~done[step]).float()
        surprise = reward[step] + gamma * goes_on * following - value[step]
        ahead = surprise + gamma * decay * goes_on * ahead
        out[step], following = ahead, value[step]
    return out


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], args: Args) -> dict[str, float]:
    """Some passes over the batch [T * N]; the losses of the last minibatch."""
    for _ in range(args.epochs):
        for rows in torch.randperm(len(batch["advantage"])).chunk(args.minibatches):
            part = {name: values[rows] for name, values in batch.items()}
            policy = agent.policy(part["observation"])
            ratio = (policy.log_prob(part["action"]) - part["log_prob"]).exp()
            advantage = (part["advantage"] - part["advantage"].mean()) / (part["advantage"].std(correction=0) + 1e-8)
            gains = torch.minimum(ratio * advantage, ratio.clamp(1 - args.clip, 1 + args.clip) * advantage)
            losses = {
                "policy": -gains.mean(),
                "value": (agent.value(part["observation"]) - part["target"]).square().mean() / 2,
                "entropy": policy.entropy().mean(),
            }
            optimizer.zero_grad()
            loss = losses["policy"] + args.value_weight * losses["value"] - args.entropy_weight * losses["entropy"]
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def logger(folder: Path | None) -> Callable[[dict[str, float], int], None]:
    """Prints the return; writes everything for TensorBoard where there is a folder."""
    writer = None
    if folder is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder)

    def log(values: dict[str, float], step: int) -> None:
        print(f"{step} steps: return {values['return']:.3f}", flush=True)
        if writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    return log


def main(args: Args) -> list[float]:
    """Train; returns the mean return of the latest 100 episodes after every update."""
    torch.manual_seed(args.seed)
    envs = SyncVectorEnv([lambda: make_env(args)] * args.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = Agent(envs.single_observation_space, envs.single_action_space, args.width)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    updates = max(1, args.total_steps // (args.num_envs * args.num_steps))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / updates, updates)
    log = logger(args.logdir)
    observation, _ = envs.reset(seed=args.seed)
    returns: deque[float] = deque(maxlen=100)
    history = []
    for number in range(updates):
        batch, observation = rollout(agent, envs, observation, args, returns)
        with torch.no_grad():
            last = agent.value(observation)
        known = batch["reward"], batch["value"], batch["done"], last
        batch["advantage"] = advantages(*known, args.gamma, args.gae_lambda)
        batch["target"] = batch["advantage"] + batch["value"]
        losses = update(agent, optimizer, {name: values.flatten(0, 1) for name, values in batch.items()}, args)
        schedule.step()
        history.append(float(np.mean(returns)) if returns else float("nan"))
        log({"return": history[-1], **losses}, (number + 1) * args.num_envs * args.num_steps)
    envs.close()
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
