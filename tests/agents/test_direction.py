"""Each direction against autograd of its objective written out."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from reelgym.agents.advantage import ADVANTAGE_LIMIT
from reelgym.agents.direction import (
    TrainingSample,
    clipped_weight,
    log_ratio,
    nft_direction,
    policy_direction,
    reference_direction,
    rows,
)
from reelgym.agents.forward_process import ForwardProcess
from reelgym.agents.policy_gradient import PolicyGradient
from reelgym.agents.reward_gradient import WindowCodec, WindowGradient, augmented, reward_direction, seen_windows
from reelgym.agents.rollout import GatheredStep
from reelgym.envs.stack import Stack
from reelgym.models.sampler import FlowSDE, Kernel, consistency
from reelgym.noise import stream_keys
from reelgym.rewards.windows import clip_prompts
from reelgym.training.surrogate import surrogate

SHAPE = (3, 2, 4, 5, 5)
ADVANTAGE = torch.tensor([1.0, -2.0, 0.0])
STEPS = ((1.0, 0.9), (0.9, 0.5), (0.5, 0.2))


def columns(kernel_of):
    """The kernels of several steps, one a stream."""
    kernels = [kernel_of(*step) for step in STEPS]
    return Kernel(*(torch.tensor([getattr(k, name) for k in kernels]) for name in ("keep", "pull", "std")))


KERNELS = {
    "consistency": columns(consistency),
    "sde": columns(FlowSDE(0.7)),
    "one consistency": consistency(0.9, 0.5),
    "one sde": FlowSDE(0.7)(0.9, 0.5),
}
EACH_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
RESCALE = pytest.mark.parametrize("rescale", [False, True])


def draw(*seeds):
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def column(value):
    return rows(torch.as_tensor(value).expand(3))


def normal_of(kernel, x, x0):
    return Normal(column(kernel.keep) * x + column(kernel.pull) * x0, column(kernel.std).expand_as(x0))


def scale_of(kernel, rescale):
    return column(kernel.std / kernel.pull) if rescale else 1.0


def test_the_surrogate_has_the_direction_as_its_gradient():
    x0, direction, weight = draw(0, 1, 2)
    x0.requires_grad_()
    surrogate(x0, direction.requires_grad_(), weight).backward()
    torch.testing.assert_close(x0.grad, weight * direction.detach() / x0.numel())
    assert direction.grad is None


def test_a_weight_of_zero_teaches_nothing():
    x0, direction = draw(0, 1)
    surrogate(x0.requires_grad_(), direction, torch.zeros(3, 2, 1, 5, 5)).backward()
    assert not x0.grad.any()


@EACH_KERNEL
@RESCALE
def test_policy_direction(kernel, rescale):
    x, x0, x_next = draw(0, 1, 2)
    leaf = x0.clone().requires_grad_()
    objective = rows(ADVANTAGE) * scale_of(kernel, rescale) * normal_of(kernel, x, leaf).log_prob(x_next)
    objective.sum().neg().backward()
    torch.testing.assert_close(policy_direction(kernel, x_next, x, x0, ADVANTAGE, rescale), leaf.grad)


@EACH_KERNEL
def test_on_policy_and_rescaled_it_is_advantage_times_the_noise_at_every_step(kernel):
    x, x0, eps = draw(0, 1, 2)
    found = policy_direction(kernel, kernel.draw(x, x0, eps), x, x0, ADVANTAGE)
    torch.testing.assert_close(found, -rows(ADVANTAGE) * eps, atol=1e-4, rtol=1e-4)


@EACH_KERNEL
@RESCALE
def test_the_pull_of_a_policys_ask_is_the_gradient_of_the_kl(kernel, rescale):
    x, x0, reference = draw(0, 1, 2)
    leaf = x0.clone().requires_grad_()
    kl = kl_divergence(normal_of(kernel, x, leaf), normal_of(kernel, x, reference))
    (scale_of(kernel, rescale) * kl).sum().backward()
    stiffness = (
        PolicyGradient(rescale=rescale)._sample(GatheredStep(x, torch.ones(3), x, x0, kernel)).kl_weight.expand(3)
    )
    torch.testing.assert_close(reference_direction(x0, reference, stiffness), leaf.grad)


@EACH_KERNEL
@pytest.mark.parametrize("weighted", [False, True])
def test_log_ratio_is_the_difference_of_torchs_log_probabilities(kernel, weighted):
    x, x0, old, x_next, raw = draw(0, 1, 2, 3, 4)
    weight = raw.abs() if weighted else 1.0
    laws = [normal_of(kernel, x, prediction) for prediction in (x0, old)]
    expected = (weight * (laws[0].log_prob(x_next) - laws[1].log_prob(x_next))).flatten(1).mean(1)
    torch.testing.assert_close(log_ratio(kernel, x_next, x, x0, old, weight), expected, atol=1e-4, rtol=1e-4)
    assert not log_ratio(kernel, x_next, x, x0, x0, weight).any()
    assert log_ratio(kernel, *(value.bfloat16() for value in (x_next, x, x0, old))).dtype == torch.float32


@EACH_KERNEL
@RESCALE
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_policys_push_is_the_gradient_of_ppos_objective(kernel, rescale, weighted, clip):
    x, x0, old, x_next, raw = draw(0, 1, 2, 3, 4)
    x0, old = 0.1 * x0, 0.1 * old
    weight = raw.abs() if weighted else 1.0
    advantage = torch.tensor([1.0, -1.0, 0.5])
    leaf = x0.clone().requires_grad_()
    log_probs = [weight * normal_of(kernel, x, prediction).log_prob(x_next) for prediction in (leaf, old)]
    ratio = (log_probs[0] - log_probs[1]).flatten(1).mean(1).exp()
    clipped = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    objective = clipped if clip else log_probs[0].flatten(1).mean(1) * advantage
    (scale_of(kernel, rescale).flatten() * objective if rescale else objective).sum().neg().backward()
    policy = PolicyGradient(rescale=rescale, clip_coef=clip)
    ask = policy._sample(GatheredStep(x, torch.ones(3), x_next, x0, kernel))
    direction, measured = policy.loss_gradient(ask, x0, old, advantage, weight)
    torch.testing.assert_close(direction / x0[0].numel(), leaf.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        measured["losses/ratio_max_error"], (ratio - 1).abs().max().detach(), atol=1e-5, rtol=1e-4
    )
    assert measured["losses/clipfrac"] == (leaf.grad.flatten(1) == 0).all(1).float().mean()


def test_where_clipping_cuts_off():
    ratio, advantage = torch.tensor([0.8, 1.0, 1.2, 0.8, 1.0, 1.2]), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    torch.testing.assert_close(clipped_weight(ratio, advantage, 0.1), torch.tensor([0.8, 1.0, 0.0, 0.0, 1.0, 1.2]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("on_policy", [True, False])
def test_nft_direction_is_the_gradient_of_diffusion_nfts_loss(beta, on_policy):
    x0, old, clean = draw(0, 1, 2)
    old, reward_weight = x0 if on_policy else old, torch.tensor([0.9, 0.2, 0.5])
    leaf, loss = x0.clone().requires_grad_(), 0.0
    for share, prediction in (
        (reward_weight, beta * leaf + (1 - beta) * old),
        (1 - reward_weight, (1 + beta) * old - beta * leaf),
    ):
        width = (prediction - clean).abs().mean((1, 2, 3, 4)).detach()
        loss = loss + (rows(share / width) * (prediction - clean).square()).sum()
    loss.backward()
    found = nft_direction(x0, old, clean, reward_weight, beta)
    torch.testing.assert_close(found, leaf.grad / (2 * beta), atol=1e-5, rtol=1e-4)
    assert not on_policy or found[2].abs().max() < 1e-6  # half way it teaches nothing


def test_on_policy_the_forward_process_pushes_by_the_advantage():
    x, x0, clean, weight = draw(0, 1, 2, 3)
    ask = TrainingSample(x, torch.ones(3), clean)
    width = (x0 - clean).abs().mean((1, 2, 3, 4), keepdim=True)
    for beta in (0.3, 1.0):
        found, _ = ForwardProcess(beta=beta).loss_gradient(ask, x0, x0, ADVANTAGE, weight)
        torch.testing.assert_close(found, weight * rows(ADVANTAGE) * (x0 - clean) / width, atol=1e-4, rtol=1e-4)
    limits = torch.tensor([ADVANTAGE_LIMIT, -ADVANTAGE_LIMIT, 0.0])
    assert ForwardProcess().loss_gradient(ask, x0, x0, limits, 1.0)[0].isfinite().all()


def test_a_perfect_prediction_is_left_alone():
    x0 = draw(0)[0]
    assert not nft_direction(x0, x0, x0, torch.tensor([0.0, 0.5, 1.0]), 1.0).any()


def test_reward_direction_is_the_gradient_of_the_return(codec, reward, prompts, layout):
    latents, (embeds, texts) = torch.randn(2, 12, 4, 4, 4), prompts(2, 0)
    scorer, keys = reward.windowed(layout, codec), stream_keys(0, 2)
    direction, returns = reward_direction(latents, clip_prompts(embeds, texts), scorer, codec, keys, 0.0, 0)
    leaf, total = latents.clone().requires_grad_(), 0.0
    for j in range(4):
        window = codec.decode(leaf[:, max(0, 3 * j - 3) : 3 * j + 3])
        total = total + reward(window, clip_prompts(embeds[:, j : j + 1], [[row[j]] for row in texts])).reward / 4
    torch.testing.assert_close(returns, total.detach())
    total.sum().neg().backward()
    torch.testing.assert_close(direction, leaf.grad / leaf.grad.square().mean((1, 2, 3, 4), keepdim=True).sqrt())
    torch.testing.assert_close(direction.square().mean((1, 2, 3, 4)), torch.ones(2))


def test_the_gradient_of_a_window_is_what_the_whole_clip_gives_its_latents(codec, reward, prompts, layout, real_stack):
    torch.manual_seed(0)
    for whose, shape in ((codec, (12, 4, 4, 4)), (Stack.load(real_stack).codec, (6, 4, 6, 10))):
        leaf = torch.randn(2, *shape, requires_grad=True)
        span = slice(shape[0] // 2, shape[0] - 1)
        inside = leaf.detach()[:, span].requires_grad_()
        video = WindowCodec(whose, leaf.detach()[:, : span.start]).decode(inside)
        first = whose.frames_of(span.start)
        whole = whose.decode(leaf)[:, first : first + video.shape[1]]
        torch.testing.assert_close(video, whole, atol=1e-5, rtol=0)
        weight = torch.randn_like(video)
        (found,) = torch.autograd.grad((video * weight).sum(), inside)
        (wanted,) = torch.autograd.grad((whole * weight).sum(), leaf)
        torch.testing.assert_close(found, wanted[:, span], atol=1e-5, rtol=1e-5)
        assert bool(wanted[:, : span.start].any()) == (whose is not codec)  # the part that is left out


def test_windows_are_drawn_for_each_clip_and_are_the_return_on_the_average(codec, reward, prompts, layout):
    latents, (embeds, texts) = torch.randn(1, 12, 4, 4, 4).expand(400, -1, -1, -1, -1), prompts(1, 0)
    batch, keys = clip_prompts(embeds.expand(400, -1, -1, -1), texts * 400), stream_keys(0, 400)
    env = SimpleNamespace(codec=codec, layout=layout)
    found, returns = WindowGradient(noise=0.0, shift=0).direction(latents, batch, keys, reward, env)
    torch.testing.assert_close(found.square().mean((1, 2, 3, 4)), torch.ones(400))
    seen = found.abs().sum((2, 3, 4)).unflatten(1, (4, 3)).sum(2).ne(0)
    assert seen_windows(reward, codec, layout) == [0, 1, 2, 3]
    kinds = {(True, False, False, False), (True, True, False, False), (False, True, True, False)}
    assert {tuple(row) for row in seen.tolist()} == kinds | {(False, False, True, True)}
    whole = reward.windowed(layout, codec).score(codec.decode(latents[:1]), clip_prompts(embeds, texts)).reward
    assert abs(float(returns.mean() - whole)) < 3 * float(returns.std()) / 20


def test_augmentation(codec):
    video, keys = torch.rand(5, 2, 3, 8, 8), stream_keys(0, 5)
    assert torch.equal(augmented(video, keys, 0.0, 0), video)
    moved = augmented(video, keys, 0.0, 1)
    wide = torch.nn.functional.pad(video.flatten(0, 1), (1,) * 4, mode="replicate").unflatten(0, (5, 2))
    places = [[(y, x) for y in range(3) for x in range(3)
               if torch.equal(moved[clip], wide[clip, :, :, y : y + 8, x : x + 8])] for clip in range(5)]  # fmt: skip
    assert all(places) and len({place[0] for place in places}) > 1
    assert 0.08 < (augmented(video, keys, 0.1, 0) - video).std() < 0.12
    assert torch.equal(augmented(video[3:], keys[3:], 0.1, 1), augmented(video, keys, 0.1, 1)[3:])
