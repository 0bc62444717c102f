"""How agents of other libraries learn in the environments: recipes by name and environment, as plain settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class AgentRecipe:
    """One agent in one environment."""

    library: Literal["sb3", "tianshou"]
    """Who trains it."""
    algorithm: Literal["PPO", "SAC"]
    """The library's class."""
    streams: int
    """Environments that run side by side."""
    steps: int
    """Steps of the environments, all streams together."""
    rollout: int = 512
    """Tianshou: steps of all streams between updates."""
    epochs: int = 5
    """Tianshou: passes over them."""
    batch: int = 128
    """Tianshou: steps of a gradient."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm, in the library's own words."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its policy."""
    env: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment that it learns in."""
    clip_features: bool = False
    """Whether the policy looks at the observation's clip through adapters.features.ClipFeatures."""


STEER, DETECT = "reelgym/StreamSteer-v0", "reelgym/StreamDetect-v0"
AGENT_RECIPES: dict[tuple[str, str], AgentRecipe] = {
    ("sb3-ppo", STEER): AgentRecipe(
        library="sb3",
        algorithm="PPO",
        streams=64,
        steps=8_192,
        settings={
            "n_steps": 8,
            "batch_size": 128,
            "n_epochs": 5,
            "learning_rate": 1e-3,
            "gamma": 1.0,
            "gae_lambda": 0.95,
        },
        policy={"log_std_init": -0.5},
    ),
    ("sb3-sac", STEER): AgentRecipe(
        library="sb3",
        algorithm="SAC",
        streams=16,
        steps=8_192,
        settings={
            "learning_rate": 7e-4,
            "batch_size": 512,
            "gamma": 1.0,
            "tau": 0.005,
            "gradient_steps": 4,
            "learning_starts": 512,
            "ent_coef": "auto_0.1",
        },
        policy={"net_arch": [64, 64], "optimizer_kwargs": {"weight_decay": 5e-4}},
    ),
    ("tianshou-ppo", STEER): AgentRecipe(
        library="tianshou",
        algorithm="PPO",
        streams=64,
        steps=8_192,
        settings={"gamma": 1.0, "gae_lambda": 0.95, "max_grad_norm": 0.5, "ent_coef": 0.0},
        policy={"learning_rate": 1e-3, "hidden_sizes": [64, 64], "log_std_init": -0.5},
    ),
    ("sb3-ppo", DETECT): AgentRecipe(
        library="sb3",
        algorithm="PPO",
        streams=64,
        steps=204_800,
        settings={
            "n_steps": 32,
            "batch_size": 512,
            "n_epochs": 4,
            "learning_rate": 1e-3,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "ent_coef": 0.05,
        },
        env={"clips": 4096},
        clip_features=True,
    ),
}
"""The settings that `reelgym train AGENT --env ID` uses."""
AGENTS = tuple(dict.fromkeys(name for name, _ in AGENT_RECIPES))


def recipe_of(agent: str, env: str) -> AgentRecipe:
    """The recipe of an agent in an environment; ValueError that says which there are."""
    if (agent, env) not in AGENT_RECIPES:
        known = "; ".join(f"{name} in {place}" for name, place in AGENT_RECIPES)
        raise ValueError(f"no settings are kept for {agent} in {env}; there are: {known}")
    return AGENT_RECIPES[agent, env]
