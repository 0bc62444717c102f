"""A critic: what a clip will still earn, from what StreamGen shows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """Value [B] of an observation: `latents` [B, W, C, h, w], `prompt` [B, L, D], `position` int64 [B].

    Args:
        window: (W, C, h, w).
        prompt: (L, D).
        positions: chunks of a clip and one more.
        width: of every layer.
    """

    def __init__(
        self, window: tuple[int, int, int, int], prompt: tuple[int, int], positions: int, width: int = 64
    ) -> None:
        super().__init__()
        frames, channels, height, across = window
        self.read = nn.Sequential(
            nn.Conv2d(frames * channels, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * -(-height // 2) * -(-across // 2), width),
        )
        self.hear = nn.Linear(prompt[0] * prompt[1], width)
        self.place = nn.Embedding(positions, width)
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.judge = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """[B]; an untrained critic says 0."""
        parts = self.read(seen["latents"].flatten(1, 2)) + self.hear(seen["prompt"].flatten(1))
        return self.judge(parts + self.place(seen["position"])).squeeze(-1)


def critic_for(seen: Mapping[str, Tensor], positions: int) -> Critic:
    """An untrained critic for observations like `seen`, on their device."""
    window, prompt = tuple(seen["latents"].shape[1:]), tuple(seen["prompt"].shape[1:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = Critic(window, prompt, positions)  # type: ignore[arg-type]
    return critic.to(seen["latents"].device)
