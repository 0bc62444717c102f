"""The tiny reward model: Bradley-Terry with ties over clips whose flaws are known.

The families in UNSEEN, one per axis, are left out of training and tell how well it ranks flaws that it never saw.
"""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ...envs.windows import Clock, WindowedModel, clip_prompts
from ...envs.worlds.fakes import FAKES
from ...envs.worlds.grammar import GRAMMARS, Clause, Grammar
from ...envs.worlds.oracle import judge
from ...envs.worlds.render import render
from ...envs.worlds.scene import Scene
from ...models.codec import FrameCodec
from ...models.generator import stream
from ...models.prompts import WordEncoder
from ...models.reward_net import TinyReward, bradley_terry_with_ties, smooth_minimum
from ...models.sampler import renoise
from ...models.tiny import build_generator
from ...models.wan import CausalWan
from ...noise import stream_keys
from .data import CHUNKS, FRAMES_PER_CHUNK, make_clips
from .flaws import PIXEL_FLAWS, SCENE_FLAWS, cut, stumble, wobble, wrong_pace
from .loop import Schedule, pretrain
from .teacher import word_encoder

TIE = 0.05
WRONG = 0.2
"""Share of flawed windows whose prompt has a wrong word."""
READINGS = 4
"""Prompts with other words that each window is read by, beside its own."""
REPAINTED = 0.3
"""Largest noise level that a window is repainted from."""
CLIMB = 5
"""Steps of pixel ascent that a gamed window has taken."""
FARTHEST, SPOILT = 0.5, 0.2
"""How far they may carry a pixel, of a range of 1, and how far leaves the window worth nothing."""
LEAST = 0.05
VISIBLE = 0.05
KNOWN = 0.7
"""Alignment above which the words of the true prompt hold."""
MOTION = 2.0
"""How much more often than others come the flaws of the pace, which are what generators suffer from most."""
LENGTHS = (1.0, 3.0, 0.5, 1.0)
"""How often windows have 1, 2, 3 and 4 chunks; the environment scores the first chunk alone and then two at a time."""
AXIS_OF_FAKE = {"VQ": (0,), "MQ": (1,), "TA": (2,), "physics": (1,)}
UNSEEN = {"VQ": "ghosting", "MQ": "energy_gain", "TA": "swap"}


@dataclass(frozen=True)
class RewardRecipe:
    """A batch holds clean and flawed windows of one length, some of them repainted by the teacher; every pair in it is
    compared on every axis."""

    grammar: str = "plain"
    """Sub-grammar of the world."""
    clips: int = 8192
    """Scripts and scenes to draw from."""
    remade: int = 512
    """Windows of each length that the teacher repaints, so that a network's brushwork is no flaw by itself."""
    painted: float = 0.4
    """Share of a batch that is repainted."""
    clean: float = 0.15
    """Share of a batch without any flaw."""
    gamed: float = 0.25
    """Share of a batch whose pixels have climbed the reward's own gradient: a flaw like any other."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=1800, batch=48, learning_rate=1e-3, ema=0.998, matrix_rate=0.01)
    )
    """Training length."""


@dataclass(frozen=True)
class Batch:
    """Windows, and what is known of how they were made.

    video: [B, F, 3, H, W]   embeds: [B, 1 + K, L, D], the prompt and K readings with other words   worth: [B, 3] in
    [0, 1] per axis   true: [B, K, L], 1 where a word of a reading holds at the window's end, 0 where not, -1 unknown
    """

    video: Tensor
    embeds: Tensor
    worth: Tensor
    true: Tensor

    def take(self, rows: slice) -> "Batch":
        """Some of the windows."""
        return Batch(*(value[rows] for value in vars(self).values()))


def pair_loss(scores: Tensor, worth: Tensor) -> Tensor:
    """Mean Bradley-Terry loss over all pairs of a batch and all axes; worths within TIE of each other tie.

    scores, worth: [B, A]
    """
    rows, columns = torch.triu_indices(scores.shape[0], scores.shape[0], 1)
    gap = worth[rows] - worth[columns]
    label = torch.where(gap.abs() < TIE, torch.zeros_like(gap), gap.sign())
    return bradley_terry_with_ties(scores[rows] - scores[columns], label).mean()


class FlawedClips:
    """Draws scripted windows: what was asked for, what was drawn, and what it is worth."""

    def __init__(self, recipe: RewardRecipe, encoder: WordEncoder, split: str, fakes: tuple[str, ...]) -> None:
        clips = make_clips(recipe.clips, split=split, seed=recipe.schedule.seed + 20, grammar=recipe.grammar)
        self.scene, self.clauses, self.encoder, self.recipe = clips.scene, clips.clauses, encoder, recipe
        self.grammar = GRAMMARS[recipe.grammar]
        axes = {name: (0, 1, 2) if name == "blank" else AXIS_OF_FAKE[FAKES[name].axis] for name in fakes}
        scene_fakes = [(bend, axes[name]) for name in fakes if (bend := FAKES[name].scene)]
        self.scene_flaws = [*SCENE_FLAWS.values(), *scene_fakes]
        self.video_fakes = [(paint, axes[name]) for name in fakes if (paint := FAKES[name].video)]
        self.rate = 1.6 / (len(self.scene_flaws) + len(PIXEL_FLAWS) + len(self.video_fakes))

    def draw(self, count: int, chunks: int, generator: torch.Generator) -> Batch:
        """`count` windows of `chunks` chunks that end with one (random) chunk of their scripts."""
        rows = torch.randint(len(self.clauses), (count,), generator=generator)
        last = int(torch.randint(chunks, CHUNKS + 1, (1,), generator=generator))
        whole = Scene(*(value[rows] for value in vars(self.scene).values()))
        scene = cut(whole, (last - chunks) * FRAMES_PER_CHUNK, last * FRAMES_PER_CHUNK)
        clean = torch.rand(count, generator=generator) < self.recipe.clean
        worth, true_path = torch.ones(count, 3), scene.position

        def strength(often: float = 1.0) -> Tensor:
            hit = (torch.rand(count, generator=generator) < often * self.rate) & ~clean
            return hit * (LEAST + (1 - LEAST) * torch.rand(count, generator=generator).square())

        for flaw, axes in self.scene_flaws:
            amount = strength(MOTION if flaw in (wrong_pace, wobble, stumble) else 1.0)
            changed = flaw(scene, amount, generator)
            worth[:, list(axes)] *= (1 - amount * _looks_changed(scene, changed))[:, None]
            scene = changed
        evenness, course = path_worth(true_path, scene.position)
        worth[:, 1] *= evenness
        worth[:, 2] *= course
        video = render(scene)
        for paint, axes in PIXEL_FLAWS.values():
            amount = strength()
            video = paint(scene, video, amount, generator)
            worth[:, list(axes)] *= (1 - amount)[:, None]
        for edit, axes in self.video_fakes:
            amount = strength()
            video = edit(video, amount, generator)
            worth[:, list(axes)] *= (1 - amount)[:, None]
        draws = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        told = [self.clauses[row][last - 1] for row in rows.tolist()]
        known = (worth[:, 2] > KNOWN).tolist()
        prompts = []
        for row, clause in enumerate(told):
            if not clean[row] and draws.random() < WRONG:
                clause = misread(clause, self.grammar, draws, 1)
                worth[row, 2] = 0
            others = [misread(told[row], self.grammar, draws, draws.randint(0, 3)) for _ in range(READINGS)]
            prompts.append([clause, *others])
        embeds = torch.stack([self.encoder.encode([str(clause) for clause in row]) for row in prompts])
        true = torch.full((count, READINGS, self.encoder.text_len), -1)
        for row, clause in enumerate(told):
            if known[row]:
                for column, reading in enumerate(prompts[row][1:]):
                    held = words_that_hold(reading, clause)
                    true[row, column, : len(held)] = torch.tensor(held)
        return Batch(video, embeds, worth, true)


def misread(clause: Clause, grammar: Grammar, draws: random.Random, words: int) -> Clause:
    """The clause with `words` of its shape, colour and motion (or direction) exchanged for others of the grammar."""
    for word in draws.sample(("shape", "colour", "motion"), words):
        options = [replace(clause, **{word: other}) for other in getattr(grammar, f"{word}s")]
        if word == "motion":
            options = [replace(clause, motion="rests", direction=None, speed="medium")]
            options += [replace(clause, motion="moves", direction=way) for way in grammar.directions]
        clause = draws.choice([option for option in options if option != clause])
    return clause


def words_that_hold(reading: Clause, clause: Clause) -> list[int]:
    """For every word of a reading: 1 if the clause has it too, 0 if not, -1 for an article."""
    held = str(clause).split()
    return [-1 if word in ("a", "an") else int(word in held) for word in str(reading).split()]


def word_loss(agreement: Tensor, true: Tensor) -> Tensor:
    """Binary cross-entropy of every word's agreement [B, K, L] with whether it holds; true: 1, 0, or -1 for unknown."""
    known = true >= 0
    loss = functional.binary_cross_entropy_with_logits(agreement[known], true[known].float(), reduction="sum")
    return loss / known.sum().clamp_min(1)


def _looks_changed(before: Scene, after: Scene) -> Tensor:
    """[B]: whether a flaw touched more than the path."""
    size = (after.radius != before.radius).any(1)
    return size | (after.rgb != before.rgb).flatten(1).any(1) | (after.shape != before.shape).any(1)


def path_worth(true: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of a path that was bent, in (0, 1], from the paths true and drawn [B, F, 2] in pixels.

    evenness [B] (for MQ, which knows no prompt): no jolt and no change of pace that the true path, played at the drawn
    one's mean pace, has not. course [B] (for TA): it goes where it was to go, as far as it was to go.
    """
    step, due = drawn.diff(dim=1), true.diff(dim=1)
    pace, due_pace = step.norm(dim=-1), due.norm(dim=-1)
    share = (pace * due_pace).sum(1, keepdim=True) / due_pace.square().sum(1, keepdim=True).clamp_min(1e-3)
    share = torch.where(due_pace.sum(1, keepdim=True) > 1e-3, share, torch.ones_like(share))
    jolt = (step.diff(dim=1) - share[..., None] * due.diff(dim=1)).square().sum(-1).mean(1).sqrt()
    uneven = (pace - share * due_pace).square().mean(1).sqrt()
    off = drawn - true
    astray = (off - off.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    extent = (true - true.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    return torch.exp(-jolt / 1.5 - uneven), torch.exp(-astray / (0.5 + 0.4 * extent))


def gamed(model: TinyReward, batch: Batch, generator: torch.Generator) -> Batch:
    """The windows after a few signed steps of pixel ascent on the model's own scores, every fourth of them from noise
    or from its background alone. What was gained so is worth nothing: each axis loses by how far the pixels went."""
    count = len(batch.video)
    start = torch.rand(count, generator=generator)
    noise = torch.rand(batch.video.shape, generator=generator)
    empty = batch.video.flatten(1).median(dim=1).values[:, None, None, None, None].expand_as(batch.video)
    pick = start[:, None, None, None, None]
    video = torch.where(pick < 1 / 8, noise, torch.where(pick < 1 / 4, empty, batch.video))
    reach = FARTHEST * torch.rand(count, generator=generator)
    for _ in range(CLIMB):
        video = video.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(video, batch.embeds[:, 0]).sum(), video)
        video = (video + (reach / CLIMB)[:, None, None, None, None] * slope.sign()).clamp(0, 1)
    left = (1 - reach / SPOILT).clamp_min(0) * (start >= 1 / 4)
    unknown = torch.full_like(batch.true, -1)
    return replace(batch, video=video.detach(), worth=batch.worth * left[:, None], true=unknown)


@torch.no_grad()
def repainted(codec: FrameCodec, teacher: CausalWan, batch: Batch, null: Tensor, generator: torch.Generator) -> Batch:
    """The windows after the teacher has noised them a little and denoised them, under the null prompt [L, D]: flaws and
    worth stay, but what painted them is a network and no longer the renderer."""
    parts = []
    for video in batch.video.split(64):
        x0 = codec.encode(video)
        sigma = REPAINTED * torch.rand(len(x0), generator=generator)
        x = renoise(x0, torch.randn(x0.shape, generator=generator), sigma)
        for here, there in ((sigma, sigma / 2), (sigma / 2, 0 * sigma)):
            x = x + (there - here)[:, None, None, None, None] * teacher(x, here, null.expand(len(x), -1, -1))
        parts.append(codec.decode(x))
    return replace(batch, video=torch.cat(parts))


def train_reward(
    recipe: RewardRecipe, codec: FrameCodec, teacher: CausalWan, student: CausalWan, out: Path
) -> tuple[TinyReward, dict[str, float]]:
    """Train on scripted and repainted windows of every length, calibrate the z-scores on them, and measure.

    The student's clips are never trained on: they only tell how the reward agrees with the oracle among them.
    """
    seed = recipe.schedule.seed
    torch.manual_seed(seed)
    encoder = word_encoder(recipe.grammar)
    model = TinyReward(encoder.dim)
    scripted = FlawedClips(recipe, encoder, "train", tuple(name for name in FAKES if name not in UNSEEN.values()))
    generator, null = torch.Generator().manual_seed(seed), encoder.encode([""])[0]
    remade = [
        repainted(codec, teacher, scripted.draw(recipe.remade, chunks, generator), null, generator)
        for chunks in range(1, CHUNKS + 1)
    ]

    def draw(generator: torch.Generator) -> Batch:
        chunks = int(torch.multinomial(torch.tensor(LENGTHS), 1, generator=generator)) + 1
        share = round(recipe.painted * recipe.schedule.batch)
        rows = torch.randint(recipe.remade, (share,), generator=generator)
        painted = Batch(*(value[rows] for value in vars(remade[chunks - 1]).values()))
        return joined(scripted.draw(recipe.schedule.batch - share, chunks, generator), painted)

    def loss(model: TinyReward, generator: torch.Generator, share: slice) -> Tensor:
        batch = draw(generator).take(share)
        climbers = round(recipe.gamed * len(batch.video))
        batch = joined(gamed(model, batch.take(slice(climbers)), generator), batch.take(slice(climbers, None)))
        quality, agreement = model.read(batch.video, batch.embeds)
        scores = torch.cat([quality, smooth_minimum(agreement[:, 0])], dim=1)
        return pair_loss(scores, batch.worth) + word_loss(agreement[:, 1:, 1:], batch.true)

    trained, seconds = pretrain("reward", model, loss, recipe.schedule, out)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        trained.calibrate(torch.cat([trained(b.video, b.embeds[:, 0]) for b in (draw(generator) for _ in range(40))]))
    agreement = oracle_agreement(trained, codec, student, encoder, recipe.grammar)
    return trained, {**unseen_accuracy(trained, encoder, recipe.grammar), **agreement, "seconds": seconds}


def joined(a: Batch, b: Batch) -> Batch:
    """Both batches as one."""
    return Batch(*(torch.cat(pair) for pair in zip(vars(a).values(), vars(b).values(), strict=True)))


@torch.no_grad()
def unseen_accuracy(reward: TinyReward, encoder: WordEncoder, grammar: str, count: int = 96) -> dict[str, float]:
    """Share of held-out clips that the axis ranks above their own fake of an unseen family, over three strengths; a
    fake that changes nothing (what rests gains no speed) is no pair."""
    clips = make_clips(count, split="validation", seed=11, grammar=grammar)
    embeds = encoder.encode([str(row[-1]) for row in clips.clauses])
    video = clips.frames(torch.arange(count))
    real = reward(video, embeds)
    figures = {}
    for place, (axis, name) in enumerate(UNSEEN.items()):
        hits = []
        for strength in (0.4, 0.7, 1.0):
            fake = FAKES[name](clips.scene, torch.full((count,), strength), torch.Generator().manual_seed(3))
            differs = (fake - video).abs().flatten(1).amax(1) > VISIBLE
            hits.append((real[:, place] > reward(fake, embeds)[:, place])[differs].float())
        figures[f"accuracy_{axis}"] = float(torch.cat(hits).mean())
    return figures


@torch.no_grad()
def oracle_agreement(
    reward: TinyReward,
    codec: FrameCodec,
    student: CausalWan,
    encoder: WordEncoder,
    grammar: str,
    prompts: int = 32,
    group: int = 16,
) -> dict[str, float]:
    """Spearman correlation of the environment's return with the oracle total among the student's clips of one prompt:
    mean over held-out prompts, and the lower end of its 95% bootstrap interval over prompts."""
    clips = make_clips(prompts, split="validation", seed=13, grammar=grammar)
    clauses = [row for row in clips.clauses for _ in range(group)]
    embeds = torch.stack([encoder.encode([str(clause) for clause in row]) for row in clauses])
    texts = [[str(clause) for clause in row] for row in clauses]
    model = WindowedModel(reward, codec, Clock(CHUNKS, FRAMES_PER_CHUNK))
    generator = build_generator(student, codec)
    keys = stream_keys(17, len(clauses))
    returns, totals = [], []
    for rows in torch.arange(len(clauses)).split(64):
        video = codec.decode(stream(generator, embeds[rows], keys[rows]))
        scores = model.score(video, clip_prompts(embeds[rows], [texts[row] for row in rows.tolist()]))
        returns.append(((scores - reward.mean) / reward.std).mean(1))
        totals.append(judge(video, [clauses[row] for row in rows.tolist()], FRAMES_PER_CHUNK).total)
    ranks = [
        torch.cat(values).unflatten(0, (prompts, group)).argsort(1).argsort(1).double() for values in (returns, totals)
    ]
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    each = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    resampled = each[torch.randint(prompts, (2000, prompts), generator=torch.Generator().manual_seed(0))].mean(1)
    return {"spearman": float(each.mean()), "spearman_low": float(resampled.quantile(0.025))}
