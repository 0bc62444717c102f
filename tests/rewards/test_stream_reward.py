import pytest
import torch
from torch import Tensor, nn

from reelgym.models.codec import Grid
from reelgym.models.prompts import PromptBank, PromptBatch, WordEncoder
from reelgym.models.reward_net import TinyReward
from reelgym.rewards.microbatch import Microbatcher, activation_bytes
from reelgym.rewards.perplexity import fuse, intra_perplexity, to_latents
from reelgym.rewards.stream_reward import RewardSettings, StreamReward

ENCODER = WordEncoder(["red", "blue", "circle", "square", "left", "right"], text_len=4)
BANK = PromptBank.build(ENCODER, ["red circle left", "blue square right", "red square"])


class Counting(nn.Module):
    """score_m = w_m . mean of each row's pixels, weighted by place; counts forward and backward passes."""

    axes = ("VQ", "MQ", "TA")
    min_frames = 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.0, -1.0]))
        self.register_buffer("std", torch.tensor([2.0, 1.0, 0.5]))
        self.forwards = self.backwards = 0

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        self.forwards += 1
        self.seen = video.detach()
        if torch.is_grad_enabled() and video.requires_grad:
            video = video * 1
            video.register_hook(self._count)
        ramp = torch.linspace(0, 1, video.shape[1])[None, :, None, None, None]
        means = [video.mean(dim=(1, 2, 3, 4)), (video.square() * ramp).mean(dim=(1, 2, 3, 4))]
        return torch.stack([*means, video[..., 0].mean(dim=(1, 2, 3)) * prompts.embeds.sum(dim=(1, 2))], dim=-1)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1


def batch(rows: int) -> PromptBatch:
    return BANK.batch(torch.arange(rows) % 4)


def frame_grid(frames: int) -> Grid:
    return Grid(torch.arange(frames), 2, 2)


@pytest.fixture(scope="module")
def tiny() -> StreamReward:
    torch.manual_seed(0)
    return StreamReward(TinyReward(ENCODER.dim, width=32))


def test_scores_are_z_scores_and_reward_their_mean() -> None:
    model = Counting()
    video = torch.rand(2, 3, 3, 4, 4)
    signal = StreamReward(model)(video, batch(2))
    expected = (model.score(video, batch(2)) - model.mean) / model.std
    assert torch.allclose(signal.scores, expected) and torch.allclose(signal.reward, expected.mean(dim=1))
    assert signal.perplexity is None and signal.gradient is None


@pytest.mark.parametrize(
    ("need", "backwards"),
    [
        ({"scores"}, 0),
        (set(), 0),
        ({"gradient"}, 1),
        ({"saliency"}, 3),
        ({"perplexity"}, 3),
        ({"perplexity", "gradient", "saliency"}, 3),
    ],
)
def test_one_forward_and_only_the_backwards_asked_for(need: set[str], backwards: int) -> None:
    model = Counting()
    reward = StreamReward(model, RewardSettings(batched=False))
    signal = reward(torch.rand(2, 3, 3, 4, 4), batch(2), frame_grid(3), need=need)
    assert (model.forwards, model.backwards) == (1, backwards)
    assert (signal.perplexity is not None) == ("perplexity" in need)
    assert (signal.gradient is not None) == ("gradient" in need)
    assert (signal.saliency is not None) == ("saliency" in need)
    assert not signal.scores.requires_grad


def test_three_methods_are_the_call_by_parts() -> None:
    model, video, grid = Counting(), torch.rand(2, 3, 3, 4, 4), frame_grid(3)
    reward = StreamReward(model, RewardSettings(batched=False))
    call = reward(video, batch(2), grid, need={"saliency", "perplexity", "gradient"})
    model.forwards = model.backwards = 0
    scores, weights = reward.score(video, batch(2)), reward.weights(video, batch(2), grid)
    assert (model.forwards, model.backwards) == (2, 3)
    assert torch.equal(scores.scores, call.scores) and torch.equal(weights.reward, call.reward)
    assert torch.equal(weights.saliency, call.saliency) and torch.equal(weights.perplexity, call.perplexity)
    assert torch.allclose(reward.gradient(video, batch(2)).gradient, call.gradient)


def test_axes_in_one_batched_backward() -> None:
    model = Counting()
    video, grid = torch.rand(2, 3, 3, 4, 4), frame_grid(3)
    one = StreamReward(model, RewardSettings(batched=True))(video, batch(2), grid, need={"perplexity", "gradient"})
    assert model.backwards == 1
    three = StreamReward(model, RewardSettings(batched=False))(video, batch(2), grid, need={"perplexity", "gradient"})
    assert torch.allclose(one.perplexity, three.perplexity) and torch.allclose(one.gradient, three.gradient)


def test_tiny_reward_batched_equals_sequential(tiny: StreamReward) -> None:
    video, grid = torch.rand(2, 3, 3, 32, 32), Grid(torch.arange(3), 8, 8)
    need = {"perplexity", "gradient"}
    one = StreamReward(tiny.model, RewardSettings(batched=True))(video, batch(2), grid, need=need)
    three = StreamReward(tiny.model, RewardSettings(batched=False))(video, batch(2), grid, need=need)
    assert torch.allclose(one.perplexity, three.perplexity, atol=1e-4)
    assert torch.allclose(one.gradient, three.gradient, atol=1e-6)


def test_perplexity_and_gradient_are_those_of_the_formulas() -> None:
    model = Counting()
    video, prompts, grid = torch.rand(2, 4, 3, 4, 4), batch(2), frame_grid(4)
    signal = StreamReward(model, RewardSettings(tau=0.7))(video, prompts, grid, need={"perplexity", "gradient"})
    leaf = video.clone().requires_grad_()
    scores = (model.score(leaf, prompts) - model.mean) / model.std
    gradients = torch.stack([torch.autograd.grad(scores[:, m].sum(), leaf, retain_graph=True)[0] for m in range(3)])
    assert torch.allclose(signal.gradient, gradients.mean(dim=0))
    assert torch.allclose(signal.perplexity, intra_perplexity(to_latents(fuse(scores, gradients, 0.7), grid)))
    found = StreamReward(model, RewardSettings(tau=0.7))(video, prompts, need={"saliency"})
    assert torch.allclose(found.saliency, fuse(scores, gradients, 0.7))
    alone = StreamReward(model)(video, prompts, need={"gradient"})
    assert torch.allclose(alone.gradient, signal.gradient)


def test_rows_are_independent_at_any_batch_size(tiny: StreamReward) -> None:
    torch.manual_seed(3)
    video, grid, need = torch.rand(4, 4, 3, 32, 32), Grid(torch.arange(4), 8, 8), {"perplexity", "gradient"}
    whole = tiny(video, batch(4), grid, need=need)
    assert len({round(r, 5) for r in whole.reward.tolist()}) == 4
    for i in range(4):
        alone = tiny(video[i : i + 1], batch(4).take(torch.tensor([i])), grid, need=need)
        assert torch.allclose(alone.scores[0], whole.scores[i], atol=1e-5)
        assert torch.allclose(alone.perplexity[0], whole.perplexity[i], atol=1e-3)
        assert torch.allclose(alone.gradient[0], whole.gradient[i], atol=1e-6)


def test_scores_stay_attached_to_a_video_that_requires_grad() -> None:
    model = Counting()
    latents = torch.rand(2, 3, 3, 4, 4, requires_grad=True)
    video = latents * 0.5
    signal = StreamReward(model)(video, batch(2), frame_grid(3), need={"perplexity", "gradient"})
    assert signal.scores.requires_grad and not signal.perplexity.requires_grad
    (through,) = torch.autograd.grad(signal.reward.sum(), latents, retain_graph=True)
    (chained,) = torch.autograd.grad(video, latents, signal.gradient)
    assert torch.allclose(through, chained)
    with torch.no_grad():
        assert not StreamReward(model)(video, batch(2)).scores.requires_grad
        assert StreamReward(model)(video, batch(2), need={"gradient"}).gradient is not None


def test_reward_parameters_are_frozen(tiny: StreamReward) -> None:
    assert not any(p.requires_grad for p in tiny.model.parameters())


def test_some_axes() -> None:
    model, video = Counting(), torch.rand(2, 3, 3, 4, 4)
    signal = StreamReward(model, RewardSettings(axes=("TA", "VQ")))(video, batch(2))
    assert torch.equal(signal.scores, StreamReward(model)(video, batch(2)).scores[:, [2, 0]])
    with pytest.raises(ValueError, match="no axis 'XQ'"):
        StreamReward(model, RewardSettings(axes=("XQ",)))


def test_pixels_arrive_as_they_are() -> None:
    model, video = Counting(), torch.rand(1, 3, 3, 4, 4)
    StreamReward(model)(video, batch(1), need={"gradient"})
    assert torch.equal(model.seen, video)


def test_what_overshoots_is_scored_as_it_would_be_shown_and_keeps_its_gradient() -> None:
    model, video = Counting(), (torch.rand(1, 3, 3, 4, 4) * 3 - 1).requires_grad_()
    signal = StreamReward(model)(video, batch(1))
    assert torch.equal(model.seen, video.detach().clamp(0, 1))
    (gradient,) = torch.autograd.grad(signal.scores[:, 0].sum(), video)
    assert (gradient != 0).all()


@pytest.mark.parametrize("need", [{"gradient"}, {"perplexity", "gradient"}])
def test_a_memory_budget_splits_the_batch_and_changes_nothing(tiny: StreamReward, need: set[str]) -> None:
    video, grid = torch.rand(5, 4, 3, 32, 32), Grid(torch.arange(4), 8, 8)
    whole = tiny(video, batch(5), grid, need=need)
    one_row = activation_bytes(lambda: tiny.model.score(video[:1].requires_grad_(), batch(1)), tiny.model)
    limited = StreamReward(tiny.model, RewardSettings(memory=int(2.5 * one_row)))
    seen: list[int] = []
    hook = tiny.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    parts = limited(video, batch(5), grid, need=need)
    hook.remove()
    assert seen == [1, 2, 2, 1]  # one to measure
    for name in ("scores", "reward", "perplexity", "gradient"):
        a, b = getattr(whole, name), getattr(parts, name)
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-3)
    seen.clear()
    hook = tiny.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    assert limited(video.clone().requires_grad_(), batch(5)).scores.requires_grad
    limited(video, batch(5))
    hook.remove()
    assert seen == [5, 5]


def test_a_memory_budget_splits_the_prompts_of_whole_clips() -> None:
    model, video = Counting(), torch.rand(3, 3, 3, 4, 4)
    read: list[tuple[str, ...]] = []
    model.score = lambda video, prompts: read.append(prompts.text) or torch.ones(len(video), 3)
    reward = StreamReward(model, RewardSettings(memory=1))
    with pytest.raises(ValueError, match="no score of VQ, MQ, TA depends on the pixels"):
        reward(video, batch(6), need={"gradient"})
    model.score = lambda video, prompts: read.append(prompts.text) or video.mean((1, 3, 4))
    read.clear()
    reward(video, batch(6), need={"gradient"})
    assert read == [batch(6).text[:2], batch(6).text[2:4], batch(6).text[4:]]


def test_activation_bytes_leave_weights_out() -> None:
    layer, x = nn.Linear(64, 64), torch.rand(2, 8, 64, requires_grad=True)
    assert activation_bytes(lambda: layer(x).exp(), layer) == 2 * 8 * 64 * 4 * 2  # the input, and what exp keeps
    assert activation_bytes(lambda: layer(x[:1].detach().requires_grad_()).sum(), layer.requires_grad_(False)) == 0


def test_a_microbatch_holds_as_many_clips_as_the_budget_does() -> None:
    def forward(video: Tensor, prompts: PromptBatch) -> Tensor:
        return video.square().mean(dim=(1, 2, 3, 4))[:, None]

    batches = Microbatcher(5 * 3 * 3 * 4 * 4 * 2, None)
    parts = batches.split(torch.rand(6, 3, 3, 4, 4), batch(6), forward)
    assert [(len(video), len(prompts.text)) for video, prompts in parts] == [(2, 2)] * 3
    assert len(Microbatcher(None, None).split(torch.rand(6, 3, 3, 4, 4), batch(6), forward)) == 1


def test_the_callers_autocast_is_kept(tiny: StreamReward) -> None:
    video = torch.rand(1, 4, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tiny(video, batch(1)).scores
    assert cast.dtype == torch.float32 and not torch.equal(cast, tiny(video, batch(1)).scores)


def test_autocast_scores_in_float32(tiny: StreamReward) -> None:
    video = torch.rand(2, 4, 3, 32, 32)
    exact = tiny(video, batch(2), need={"gradient"})
    cast = StreamReward(tiny.model, RewardSettings(autocast=torch.bfloat16))
    signal = cast(video, batch(2), need={"gradient"})
    assert signal.scores.dtype == signal.gradient.dtype == torch.float32
    assert not torch.equal(signal.scores, exact.scores) and torch.allclose(signal.scores, exact.scores, atol=0.1)


def test_floors_bound_the_weights(tiny: StreamReward) -> None:
    video, grid = torch.rand(2, 4, 3, 32, 32), Grid(torch.arange(4), 8, 8)
    sharp = StreamReward(tiny.model, RewardSettings(temporal_floor=0, spatial_floor=0))
    flat = StreamReward(tiny.model, RewardSettings(temporal_floor=1, spatial_floor=1))
    assert (flat(video, batch(2), grid, need={"perplexity"}).perplexity == 1).all()
    assert (sharp(video, batch(2), grid, need={"perplexity"}).perplexity == 0).any()


def test_an_infinite_tau_fuses_all_axes_alike() -> None:
    model, video, grid = Counting(), torch.rand(2, 4, 3, 4, 4), frame_grid(4)
    alike = StreamReward(model, RewardSettings(tau=float("inf")))(video, batch(2), grid, need={"perplexity"})
    leaf = video.clone().requires_grad_()
    scores = (model.score(leaf, batch(2)) - model.mean) / model.std
    gradients = torch.stack([torch.autograd.grad(scores[:, m].sum(), leaf, retain_graph=True)[0] for m in range(3)])
    mean = gradients.abs().sum(dim=3).mean(dim=0)
    assert torch.allclose(alike.perplexity, intra_perplexity(to_latents(mean, grid)), atol=1e-5)


@pytest.mark.parametrize(
    ("video", "rows", "complaint"),
    [
        (torch.rand(1, 3, 4, 4), 1, r"float32 \[1, 3, 4, 4\]: expected floating point \[B, F, 3, H, W\]"),
        (torch.rand(1, 3, 4, 4, 4), 1, r"\[1, 3, 4, 4, 4\]: expected"),
        (torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8), 1, "uint8"),
        (torch.rand(0, 3, 3, 4, 4), 1, "holds no clip"),
        (torch.rand(1, 2, 3, 4, 4), 1, "has 2 frames: the reward needs at least 3"),
        (torch.rand(1, 3, 3, 4, 4) * 255, 1, r"pixels from .* expected values in \[0, 1\]"),
        (torch.rand(1, 3, 3, 4, 4) * 2 - 1, 1, "pixels from -"),
        (torch.full((1, 3, 3, 4, 4), float("nan")), 1, "holds NaN"),
        (torch.full((1, 3, 3, 4, 4), float("inf")), 1, "inf"),
        (torch.rand(2, 3, 3, 4, 4), 3, "3 texts and embeds .* do not fit the 2 clips"),
        (torch.rand(2, 3, 3, 4, 4), 1, "1 texts"),
    ],
)
def test_a_video_that_does_not_fit(video: Tensor, rows: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        StreamReward(Counting())(video, batch(rows))


def test_nan_is_found_under_the_callers_gradient_too() -> None:
    video = torch.full((1, 3, 3, 4, 4), float("nan")).requires_grad_()
    with pytest.raises(ValueError, match="holds NaN"):
        StreamReward(Counting())(video, batch(1))


def test_errors() -> None:
    reward, video = StreamReward(Counting()), torch.rand(1, 3, 3, 4, 4)
    with pytest.raises(ValueError, match="unknown need"):
        reward(video, batch(1), need={"score"})
    with pytest.raises(ValueError, match="pass grid"):
        reward(video, batch(1), need={"perplexity"})
    for name, value in (("tau", 0.0), ("spatial_floor", 2.0), ("memory", 0)):
        with pytest.raises(ValueError, match=name):
            RewardSettings(**{name: value})
