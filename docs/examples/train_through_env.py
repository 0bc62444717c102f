"""Train a streaming generator through reelgym/StreamGen-v0, everything in one file.

    python docs/examples/train_through_env.py --updates 20

The generator is a policy: an action is the next chunk's latents, and every denoising step but the last is a draw from
N((1 - s') x0, s'^2), so its log-probability is exact. Each prompt is played by a group of streams; a chunk's advantage
is what it and later chunks earn, against the rest of its group. `reelgym.agents.finetune` does this and more, with
shared prefixes, a reference to stay near to, clipping, and exact resume.
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import torch
import tyro
from torch.distributions import Normal

import reelgym  # noqa: F401  (registers the environment)
from reelgym.models.generator import StreamState, generate_chunk
from reelgym.models.sampler import x0_from_v
from reelgym.models.tiny import WEIGHTS, build_generator, load_tiny
from reelgym.noise import fold, stream_keys


@dataclass
class Args:
    prompts: int = 4
    """Prompts an update."""
    group: int = 6
    """Streams of each prompt."""
    updates: int = 20
    learning_rate: float = 5e-5
    seed: int = 0
    stack: Path = WEIGHTS
    """Folder with codec, reward and student; the one that is shipped by default."""


def main(args: Args) -> list[float]:
    """Train; returns the mean return of every update."""
    envs = gymnasium.make_vec(
        "reelgym/StreamGen-v0", num_envs=args.prompts * args.group, stack=args.stack, autoreset_mode="Disabled"
    )
    model = load_tiny("student", args.stack / "student")
    generator = build_generator(model, load_tiny("codec", args.stack / "codec"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    keys = stream_keys(args.seed, envs.num_envs)
    history = []
    for update in range(args.updates):
        _, texts = envs.prompts(args.prompts, update)
        scripts = [row for row in texts for _ in range(args.group)]
        observation, _ = envs.reset(seed=args.seed + update, options={"scripts": scripts})
        state, played, rewards, done = StreamState.start(fold(keys, update)), [], [], False
        with torch.no_grad():
            while not done:
                prompt = observation["prompt"]
                chunk, denoising_steps, state = generate_chunk(generator, state, prompt)
                observation, reward, terminated, _, _ = envs.step(chunk)
                played.append((prompt, denoising_steps))
                rewards.append(reward)
                done = bool(terminated[0])
        returns = torch.stack(rewards, 1).flip(1).cumsum(1).flip(1).unflatten(0, (-1, args.group))
        spread = returns.std(1, keepdim=True, correction=0)
        advantage = ((returns - returns.mean(1, keepdim=True)) / (spread + 1e-4)).flatten(0, 1)
        optimizer.zero_grad()
        for number, (prompt, denoising_steps) in enumerate(played):
            for step in denoising_steps[:-1]:
                x0 = x0_from_v(step.x, model(step.x, step.sigma, prompt, cache=step.context), step.sigma)
                kernel = Normal((1 - step.next_sigma) * x0, step.next_sigma)
                log_prob = kernel.log_prob(step.x_next).flatten(1).mean(1)
                even = step.next_sigma / (1 - step.next_sigma)
                loss = -even * (advantage[:, number] * log_prob).mean()
                (loss / (len(played) * (len(denoising_steps) - 1))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(float(returns[:, :, 0].mean()))
        print(f"update {update + 1}: return {history[-1]:.4f}", flush=True)
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
