"""An agent on disk: weights as safetensors, and what made it as JSON; no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ..envs.vector import TensorVectorEnv
from .recipes import AgentRecipe


class Agent(Protocol):
    """What acts in an environment with flat observations."""

    def act(self, observation: Tensor) -> Tensor:
        """The actions [N, ...] that it thinks best for observations [N, M]."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its weights."""
        ...


def library_of(recipe: AgentRecipe) -> Any:
    """The module here with `learn` and `restored` for the recipe's library; ImportError that says what to install."""
    try:
        return import_module(f".{recipe.library}", __package__)
    except ImportError as error:
        raise ImportError(f"this agent needs {recipe.library}: pip install 'reelgym[{recipe.library}]'") from error


def save_agent(folder: str | Path, agent: Agent, recipe: AgentRecipe, env: str, made: Mapping[str, Any]) -> None:
    """Replace `folder` by the agent. env: the environment's id. made: what JSON holds of how it was made (seed, steps,
    arguments of the environment under "env_kwargs", what it measured)."""
    save_checkpoint(folder, {"policy": agent.tensors()}, {**made, "env": env, "recipe": asdict(recipe)})


def agent_manifest(folder: str | Path) -> tuple[AgentRecipe, str, dict[str, Any]]:
    """Recipe, environment's id and the rest of what `save_agent` wrote; CheckpointError where that is not an agent."""
    _, meta = load_checkpoint(folder)
    return _recipe(folder, meta), str(meta["env"]), meta


def load_agent(folder: str | Path, vector: TensorVectorEnv[Any]) -> Agent:
    """The agent, to act in `vector`; CheckpointError where its weights do not fit the environment's spaces."""
    tensors, meta = load_checkpoint(folder)
    recipe = _recipe(folder, meta)
    try:
        agent: Agent = library_of(recipe).restored(recipe, vector, tensors["policy"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: the agent of {meta['env']} does not fit this environment's spaces") from error
    return agent


def _recipe(folder: str | Path, meta: Mapping[str, Any]) -> AgentRecipe:
    if not {"recipe", "env"} <= set(meta):
        raise CheckpointError(f"{folder}: a checkpoint, but not one of an agent")
    return AgentRecipe(**meta["recipe"])
