"""`reelgym train AGENT --env ID`: an agent of another library learns in an environment, and is kept without pickles."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import torch

from ..agents.recipes import STEER, recipe_of
from ..agents.saved import Agent, agent_manifest, library_of, load_agent, save_agent
from ..envs import stream_steer
from ..envs.stack import STACKS, Stack
from .console import progress
from .jobs import one_thread

POINTS = 8


def train_agent(name: str, env: str | None, steps: int | None, seed: int, out: Path, weights: Path) -> None:
    """Train with the settings that are kept for (name, env); writes OUT/agent and TensorBoard events, prints a line.

    weights: folder with codec, reward and student.
    """
    from torch.utils.tensorboard import SummaryWriter

    env = env or STEER
    recipe = recipe_of(name, env)
    library = library_of(recipe)
    total = steps or recipe.steps
    preset = next((known for known, folder in STACKS.items() if folder == weights), str(weights))
    kwargs = {"preset": preset, **recipe.env}
    vector: Any = gymnasium.make_vec(env, num_envs=recipe.streams, autoreset_mode=library.AUTORESET, **kwargs)
    held_out = {"split": "validation"} | ({"clips": recipe.streams} if "clips" in kwargs else {})
    exam: Any = gymnasium.make_vec(
        env, num_envs=recipe.streams, autoreset_mode="Disabled", check=False, **kwargs | held_out
    )
    started = time.perf_counter()
    with one_thread(), SummaryWriter(str(out / "tensorboard")) as writer, progress(total, name, "step") as bar:

        def note(agent: Agent, done: int) -> None:
            writer.add_scalar("validation/return", mean_return(exam, agent), done)
            bar.update(min(done, total) - bar.n)

        before = mean_return(exam, None)
        agent = library.learn(recipe, vector, seed, steps=total, call=note, every=max(1, total // POINTS))
        after = mean_return(exam, agent)
    made: dict[str, Any] = {"name": name, "seed": seed, "steps": total, "env_kwargs": kwargs}
    if env == STEER:
        made["chunks"] = vector.layout.chunks
    made |= {"quality": {"return": after, "random": before, "seconds": time.perf_counter() - started}}
    save_agent(out / "agent", agent, recipe, env, made)
    print(f"return={after:.4f} random={before:.4f}")
    print(f"agent: {out / 'agent'}")


@torch.no_grad()
def mean_return(env: Any, agent: Agent | None, seed: int = 1) -> float:
    """Mean return of one episode in every row of env; without an agent, of random actions.

    env: of DISABLED autoreset, and without `check`: rows that have ended are stepped on and earn nothing."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    total, over = torch.zeros(env.num_envs), torch.zeros(env.num_envs, dtype=torch.bool)
    while not over.all():
        actions = torch.as_tensor(env.action_space.sample()) if agent is None else agent.act(observation)
        observation, reward, ended, *_ = env.step(actions)
        total += torch.where(over, 0.0, reward.cpu())
        over |= ended.cpu()
    return float(total.mean())


def steered_by(folder: Path, prompts: list[str], seed: int, stack: Stack) -> tuple[Any, float]:
    """The clip [F, 3, H, W] that an agent's steering of prompts (one a chunk) gives, and its network passes a chunk.

    ValueError for an agent of another environment than StreamSteer.
    """
    from ..noise import stream_keys

    _, env, made = agent_manifest(folder)
    if env != STEER:
        raise ValueError(f"{folder}: this agent acts in {env}; one that acts in {STEER} can steer a clip")
    if made["chunks"] != len(prompts):
        raise ValueError(f"{folder}: this agent steers clips of {made['chunks']} chunks, not of {len(prompts)}")
    vector = stream_steer.make(stack, chunks=len(prompts), device=stack.device, autoreset_mode="Disabled")
    agent = load_agent(folder, vector)
    observation, _ = vector.reset(options={"scripts": [prompts], "keys": stream_keys(seed, 1)})
    chunks, passes = [], 0.0
    for _ in prompts:
        observation, *_ = vector.step(agent.act(observation))
        chunks.append(vector.state.clip.video[-1])
        passes += float(vector.state.evaluations)
    return torch.cat(chunks, 1)[0], passes / len(prompts)
