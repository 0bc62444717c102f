"""A guard against reward hacking: it watches a training from outside, stops it and puts the best weights back.

P prompts with K clips each, n chunks a clip; videos [P * K, F, 3, H, W], the clips of a prompt together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, refuse_missing
from ..envs.prompt_source import PromptSampler
from ..envs.stack import Stack
from ..models.codec import Codec
from ..models.generator import DenoisingStep, Generator, StreamState, generate_chunk, prediction, update_cache
from ..models.lora import frozen_copy, load_own_weights, own_weights
from ..models.prompts import PromptBatch
from ..noise import Domain, fold, stream_keys
from ..rewards.measures import MEASURES
from ..rewards.stream_reward import PixelError, StreamReward
from ..rewards.windows import ChunkLayout, clip_prompts
from .learner import Groups
from .ranks import here
from .state import State
from .tripwires import UpdateTripwires, broken_bounds, shares_of_start
from .usage import ComputeUsage


@dataclass(frozen=True)
class GuardConfig:
    """How often the guard looks, at what, and when it has seen enough."""

    every: int = 4
    """Updates between looks."""
    prompts: int = 12
    """P, at least 2: prompts of a look, the same every time."""
    clips: int = 2
    """K, at least 2: clips of each, with the same noise every time."""
    patience: int = 2
    """Bad evaluations in a row that stop the training."""
    margin: float = 1.0
    """Standard errors of the paired difference by which the held-out reward may lie below its best."""
    sharpness: float = 0.6
    """Least sharpness, as a share of the start's; 0 asks for none."""
    motion: float = 0.6
    """Least motion, as a share of the start's."""
    diversity: float = 0.6
    """Least diversity, as a share of the start's."""
    kl: float = 0.004
    """Most KL of the sampler's step from the start's, per latent element; 0 asks for none."""
    saturation: float = 1.6
    """Most saturation, as a multiple of the start's; 0 asks for none."""
    grad_norm: float = 10.0
    """Most gradient norm, as a multiple of its running median, three updates in a row; 0 asks for none."""
    critic_loss: float = 3.0
    """Most loss of a critic, as a multiple of its running median and of the teacher's loss, likewise."""
    seed: int = 0
    """Of prompts and noise."""

    def __post_init__(self) -> None:
        small = self.every < 1 or self.patience < 1 or self.prompts < 2 or self.clips < 2
        limits = (self.margin, self.kl, self.saturation, self.grad_norm, self.critic_loss)
        if small or not all(limit >= 0 for limit in limits):
            raise ValueError(
                f"every and patience are at least 1, prompts and clips at least 2, limits not below 0: {self}"
            )

    @property
    def floors(self) -> dict[str, float]:
        """Shares of the start by name."""
        return {"sharpness": self.sharpness, "motion": self.motion, "diversity": self.diversity}


@dataclass(frozen=True)
class EvalPoint:
    """What one look saw. update: how many were done. heldout: the held-out reward of each prompt [P], mean over its
    clips. values: means over all clips of reward, heldout, the measures, diversity and kl."""

    update: int
    heldout: Tensor
    values: dict[str, float]


def fallen(now: Tensor, best: Tensor, margin: float) -> bool:
    """Whether held-out rewards [P] lie below the best ones [P] by more than so many standard errors of the paired
    difference; so do those that are not numbers."""
    difference = now - best
    return not float(difference.mean()) >= -margin * float(difference.std()) / len(difference) ** 0.5


def pixel_diversity(groups: Tensor) -> Tensor:
    """[P]: root mean square pixel distance of the clips of each prompt, mean over pairs; groups [P, K, F, 3, H, W]."""
    first, second = torch.triu_indices(groups.shape[1], groups.shape[1], 1, device=groups.device)
    return (groups[:, first] - groups[:, second]).flatten(2).square().mean(2).sqrt().mean(1)


class Guard:
    """Looks at a generator with fixed prompts and noise; `fit(..., guard=...)` calls it.

    config. generator: the one in training, as it is at the start; its weights alone are ever put back, not an
    optimiser's state nor averaged weights. codec, layout: of the clips. reward: what is trained on. heldout: what
    decides, on which nothing may be trained. prompts: best of another split than the training's.
    `stopped`: whether the training is to end. `stop_reason`: what happened when weights were put back, else empty.
    `counts`: what the looks have spent; both rewards count. Of several processes the first looks for all.
    """

    def __init__(
        self,
        config: GuardConfig,
        generator: Generator,
        codec: Codec,
        layout: ChunkLayout,
        reward: StreamReward,
        heldout: StreamReward,
        prompts: PromptSampler,
    ) -> None:
        self.config, self.generator, self.codec, self.layout = config, generator, codec, layout
        self.reward, self.heldout = (model.windowed(layout, codec) for model in (reward, heldout))
        self.prompts = prompts
        self.reference = frozen_copy(generator.model)
        self.start: EvalPoint | None = None
        self.best: EvalPoint | None = None
        self.weights: dict[str, Tensor] = {}
        self.bad_evals = 0
        self.tripwires = UpdateTripwires(config.grad_norm, config.critic_loss)
        self.stopped, self.stop_reason = False, ""
        self.counts, self._charge = ComputeUsage(), ""

    def should_run(self, update: int, last: int) -> bool:
        """Whether to look after this update of `last`: at the start, every so many, and at the end."""
        if not update:
            return self.start is None
        return update % self.config.every == 0 or update == last

    def evaluate(self, update: int) -> dict[str, float]:
        """Evaluate, judge, and where it is time, stop and put the best weights back; returns what is to be logged."""
        with self.counts.timed():
            self.stop_reason = self.stop_reason if self.stopped else ""
            now = here().told(lambda: self._see(update))
            self._judge(now)
        assert self.start is not None
        shares = shares_of_start(now.values, self.start.values)
        return (
            {f"guard/{name}": value for name, value in now.values.items()}
            | {"guard/bad_evals": float(self.bad_evals)}
            | {f"tripwires/{name}": share for name, share in shares.items()}
        )

    def on_update(self, measured: Mapping[str, float], update: int) -> dict[str, float]:
        """Hold what an update measured against its tripwires; returns what is to be logged."""
        ratios, tripped = self.tripwires.see(measured)
        if tripped:
            self._stop(f"by update {update} {' and '.join(tripped)}")
        return ratios

    def on_train_end(self) -> None:
        """The training has ended: after bad evaluations, put the best weights back."""
        if self.bad_evals and not self.stopped:
            self._roll_back()
            self.bad_evals = 0

    def on_train_error(self, error: str) -> None:
        """The training cannot go on: stop it and put the best weights back."""
        self._stop(f"the training diverged ({error})")

    def state(self) -> State:
        """Everything that a bitwise resume needs: groups of tensors (those in use, no copies), and what JSON holds."""
        best = self.weights or own_weights(self.generator.model)
        groups: Groups = {"best": best, "reference": own_weights(self.reference), "looks": {}}
        meta: dict[str, Any] = {"config": asdict(self.config), "counts": asdict(self.counts), "looks": {}}
        for name in ("start", "best"):
            look: EvalPoint | None = getattr(self, name)
            if look is not None:
                groups["looks"][name] = look.heldout
                meta["looks"][name] = {"update": look.update, "values": look.values}
        meta["tripwires"] = self.tripwires.state()
        flags = {name: getattr(self, name) for name in ("bad_evals", "stopped", "stop_reason", "_charge")}
        return groups, {**meta, "flags": flags}

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError when it belongs to another config."""
        refuse_missing("guard", groups, self.state()[0])
        if {**asdict(self.config), **meta["config"]} != asdict(self.config):
            raise CheckpointError(f"the checkpoint's guard has another config: {meta['config']}")
        device = next(self.reference.parameters()).device
        self.weights = {name: value.to(device) for name, value in groups["best"].items()}
        load_own_weights(self.reference, groups["reference"])
        for name, told in meta["looks"].items():
            setattr(self, name, EvalPoint(told["update"], groups["looks"][name].to(device), told["values"]))
        former = {"strikes": "bad_evals", "why": "stop_reason"}
        for name, value in meta["flags"].items():
            setattr(self, former.get(name, name), value)
        self.tripwires.load_state(meta.get("tripwires", self.tripwires.state()))
        self.counts = ComputeUsage(**meta["counts"])

    @torch.no_grad()
    def _see(self, update: int) -> EvalPoint:
        config = self.config
        embeds, texts = self.prompts(config.prompts, Domain.GUARD + config.seed)
        device = next(self.reference.parameters()).device
        embeds = embeds.to(device).repeat_interleave(config.clips, 0)
        keys = fold(stream_keys(config.seed, len(embeds), device), Domain.GUARD)
        latents, kl = self._generate(embeds, keys)
        video = self.codec.decode(latents)
        prompts = clip_prompts(embeds, [row for row in texts for _ in range(config.clips)])
        try:
            reward, heldout = (self._score(model, video, prompts) for model in (self.reward, self.heldout))
        except PixelError:  # not fit to be shown: worse than any
            reward = heldout = torch.full((len(video),), math.nan, device=video.device)
        found = {"reward": reward, "heldout": heldout}
        found |= {name: measure(video) for name, measure in MEASURES.items()}
        found |= {"diversity": pixel_diversity(video.unflatten(0, (-1, config.clips))), "kl": kl}
        values = {name: float(value.mean()) for name, value in found.items()}
        return EvalPoint(update, heldout.unflatten(0, (-1, config.clips)).mean(1), values)

    def _generate(self, embeds: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of clips for embeds [P * K, n, L, D], and the KL to the start at every chunk [n]: at one stochastic
        step, which takes turns; 0 for a sampler of one step, which is deterministic."""
        first = slice(None, None, self.config.clips)
        state, held = StreamState.start(keys), StreamState.start(keys[first])
        start, stochastic = replace(self.generator, model=self.reference), len(self.generator.sigmas) > 1
        chunks, distances = list[Tensor](), list[Tensor]()
        for number, prompts in enumerate(embeds.unbind(1)):
            if number and stochastic:
                held = update_cache(start, held, chunks[-1][first], embeds[first, number - 1])
            chunk, denoising_steps, state = generate_chunk(self.generator, state, prompts)
            step = denoising_steps[number % (len(denoising_steps) - 1)] if stochastic else None
            distances.append(self._distance(step, start, held, prompts[first]) if step else embeds.new_zeros(()))
            chunks.append(chunk)
        self.counts.chunks += len(keys) * len(chunks)
        self.counts.generator_calls += len(keys) * len(chunks) * (len(self.generator.sigmas) + 1)
        self.counts.reference_calls += len(held.keys) * (2 * len(chunks) - 1) * stochastic
        return torch.cat(chunks, 1), torch.stack(distances)

    def _distance(self, step: DenoisingStep, start: Generator, held: StreamState, prompts: Tensor) -> Tensor:
        """KL of a step's kernel from the start's, per element, for the first clip of every prompt; held: those streams
        as the start has read them."""
        x, x0 = step.x[:: self.config.clips], step.x0[:: self.config.clips]
        sigma = torch.full((len(x),), step.sigma, device=x.device)
        frozen = prediction(start, held, x, sigma, prompts)
        away = (step.kernel.mean(x, x0) - step.kernel.mean(x, frozen)) / step.kernel.std
        return away.square().mean() / 2

    def _score(self, model: StreamReward, video: Tensor, prompts: PromptBatch) -> Tensor:
        self.counts.reward_calls += len(video) * self.layout.chunks
        return model(video, prompts).reward

    def _judge(self, now: EvalPoint) -> None:
        if self.start is None or self.best is None:
            self.start = now
            return self._keep(now)
        limits = self.config.floors, self.config.saturation, self.config.kl
        broken = broken_bounds(now.values, self.start.values, *limits)
        if not broken and now.values["heldout"] > self.best.values["heldout"]:
            return self._keep(now)
        below = fallen(now.heldout, self.best.heldout, self.config.margin)
        self.bad_evals = self.bad_evals + 1 if below or broken else 0
        if not self.bad_evals:
            return
        self._charge = charge(now, self.best, below, broken)
        if self.bad_evals >= self.config.patience:
            self._stop(self._charge)

    def _keep(self, now: EvalPoint) -> None:
        self.best, self.bad_evals = now, 0
        self.weights = {name: value.detach().clone() for name, value in own_weights(self.generator.model).items()}

    def _stop(self, charge: str) -> None:
        self._charge, self.stopped = charge, True
        self._roll_back()

    def _roll_back(self) -> None:
        assert self.best is not None
        load_own_weights(self.generator.model, self.weights)
        self.stop_reason = f"{self._charge}; the weights of update {self.best.update} are back"


def guard_of(stack: Stack, config: GuardConfig, student: Generator) -> Guard:
    """A guard of a stack's student, with the stack's two rewards, on validation prompts."""
    prompts = stack.prompts("validation")
    return Guard(config, student, stack.codec, stack.layout, stack.reward, stack.heldout, prompts)


def charge(now: EvalPoint, best: EvalPoint, below: bool, broken: list[str]) -> str:
    """What a look has against the weights, in a sentence."""
    parts = []
    if below:
        parted = now.values["reward"] > best.values["reward"]
        what = "the trained and the held-out reward parted" if parted else "both rewards fell"
        moves = [f"{label} {best.values[key]:.3f} to {now.values[key]:.3f}" for key, label in REWARDS.items()]
        parts.append(f"{what} after update {best.update} ({', '.join(moves)})")
    return f"by update {now.update} " + " and ".join(parts + broken)


REWARDS = {"reward": "trained", "heldout": "held out"}
