"""DMD weighed by where the oracle sees error: what no training may know, and so the most that such weights can give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...distill.trainer import Distill, DistillConfig
from ...envs.prompt_source import Texts
from ...envs.stack import Stack
from ...envs.worlds.grammar import parse
from ...envs.worlds.oracle import error_map
from ...models.generator import Generator
from ...rewards.perplexity import intra_perplexity, to_latents


@dataclass(frozen=True)
class OracleWeightedConfig(DistillConfig):
    """A recipe: its weights are those of perplexity, made of the oracle's error map in place of a reward's saliency."""

    def trainer(self, stack: Stack, generator: Generator) -> Distill:
        """ValueError for a codec of another size than the oracle's world."""
        return _OracleWeighted(self, generator, stack.teacher, stack.prompts(), stack.null(), codec=stack.codec)


class _OracleWeighted(Distill):
    def _weight(self, x0: Tensor, embeds: Tensor, texts: Texts) -> tuple[Tensor | float, dict[str, float]]:
        assert self.codec is not None, "given when it is made"
        with torch.no_grad():
            video = self.codec.decode(x0)
        clauses = [[parse(text)[0] for text in row] for row in texts]
        error = error_map(video, clauses, video.shape[1] // len(clauses[0]))
        weight = intra_perplexity(to_latents(error, self.codec.grid(video.shape[1])))
        return weight[:, :, None], {"error": float(error.mean())}
