"""Rollouts through the environment, with prefixes of their own and shared ones."""

from dataclasses import replace

import pytest
import torch

from reelgym.agents.rollout import GeneratorPolicy, gather_steps, rollout
from reelgym.distill.trainer import self_forcing
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.generator import StreamState, denoise_chunk, prediction, prefill, stream, update_cache
from reelgym.models.sampler import FlowSDE
from reelgym.models.wan import CacheConfig
from reelgym.noise import normal, stream_keys
from reelgym.rewards.windows import clip_prompts

GROUP = 3
SHARED = (("own", 0), ("local", 0), ("local", 2), ("full", 0))
EACH_PREFIX = pytest.mark.parametrize(("prefix", "shared"), SHARED)
LEVELS = len(SHARED)


def repeated(prompts, count, group):
    return [row for row in prompts(count // group, 0)[1] for _ in range(group)]


def played(generator, env, prompts, prefix="own", shared=0, group=GROUP, seed=3, **others):
    keys = stream_keys(seed, env.num_envs)
    texts = repeated(prompts, env.num_envs, group)
    return rollout(env, GeneratorPolicy(generator, **others), keys, texts, group, prefix, shared)


def opening(done):
    return done.steps[0].number


def full(generator, env, prompts, chunks, **others):
    """A rollout whose opening has so many chunks, and its seed."""
    for seed in range(100):
        done = played(generator, env, prompts, "full", seed=seed, **others)
        if opening(done) == chunks:
            return done, seed
    raise AssertionError(f"no opening of {chunks} chunks in a hundred draws")


def parents(done, number):
    """For every row of a turn the one row of its group that it goes on from, found by what it holds."""
    before, found = done.steps[number - 1], []
    ends = torch.cat((before.past, before.chunk), 1)
    for row, past in enumerate(done.steps[number].past):
        same = [other for other in range(len(ends)) if torch.equal(ends[other], past)]
        assert len(same) == 1 and same[0] // GROUP == row // GROUP
        found += same
    return torch.tensor(found)


@pytest.mark.parametrize("mode", ["Disabled", "SameStep"])
def test_without_sharing_it_is_the_generators_own_stream(generator, codec, reward, prompts, layout, mode):
    env = StreamGenVectorEnv(6, codec, reward, prompts, layout=layout, autoreset_mode=mode)
    done = played(generator, env, prompts)
    embeds, _ = prompts.encode(done.texts)
    assert torch.equal(done.embeds, embeds) and done.texts == tuple(map(tuple, repeated(prompts, 6, GROUP)))
    assert torch.equal(done.latents, stream(generator, embeds, stream_keys(3, 6)))
    total = reward.windowed(layout, codec)(codec.decode(done.latents), clip_prompts(embeds, done.texts)).reward
    torch.testing.assert_close(done.rewards.sum(1), total)


@EACH_PREFIX
def test_policy_and_environment_agree(generator, env, prompts, prefix, shared):
    done, window = played(generator, env, prompts, prefix, shared), env.layout.window_frames
    assert [turn.number for turn in done.steps] == list(range(opening(done), 4))
    for turn in done.steps:
        ends = torch.cat((turn.past, turn.chunk), 1)
        assert turn.past.shape[1] == 3 * turn.number and torch.equal(turn.chunk, turn.denoising_steps[-1].x0)
        for seen, clip, position in (
            (turn.observation, turn.past, turn.number),
            (turn.next_observation, ends, turn.number + 1),
        ):
            newest = torch.cat((torch.zeros(6, window, 4, 4, 4), clip), 1)[:, -window:]
            assert torch.equal(seen["latents"], newest) and seen["position"].tolist() == [position] * 6
        assert torch.equal(turn.observation["prompt"], done.embeds[:, turn.number])
        judged = env.reward(env.codec.decode(ends[:, -window:]), env.state.prompts[turn.number]).reward / 4
        torch.testing.assert_close(turn.reward, judged)
    assert torch.equal(done.latents, ends) and torch.equal(env.state.latents, ends[:, -window:])


@EACH_PREFIX
def test_its_predictions_are_the_models_own_after_the_past(generator, env, prompts, prefix, shared):
    for turn in played(generator, env, prompts, prefix, shared).steps:
        for step in range(LEVELS):
            choice = gather_steps(turn.denoising_steps, torch.full((6,), step))
            embeds = prompts.encode(env.state.texts)[0]
            state = prefill(generator, StreamState.start(stream_keys(3, 6)), turn.past, embeds)
            found = prediction(generator, state, choice.x, choice.sigma, embeds[:, turn.number])
            torch.testing.assert_close(found, choice.x0)


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_a_stream_followed_through_its_survivors_is_what_the_generator_makes_alone(generator, env, prompts, shared):
    done, keys = played(generator, env, prompts, "local", shared), stream_keys(3, 6)
    lines = [torch.arange(6)]
    for number in (3, 2, 1):
        lines.insert(0, parents(done, number)[lines[0]])
    state = StreamState.start(keys)
    for turn, rows in zip(done.steps, lines, strict=True):
        noise = [normal(keys[rows - rows % GROUP if step < shared else rows], turn.number, step, (3, 4, 4, 4))
                 for step in range(LEVELS)]  # fmt: skip
        embeds = done.embeds[:, turn.number]
        alone, denoising_steps = denoise_chunk(generator, state, embeds, noise=torch.stack(noise, 1))
        torch.testing.assert_close(turn.chunk[rows], alone)
        for mine, its in zip(turn.denoising_steps, denoising_steps, strict=True):
            torch.testing.assert_close(mine.x_next[rows], its.x_next)
        state = update_cache(generator, state, alone, embeds)
    assert len({tuple(line.tolist()) for line in lines}) > 1


@pytest.mark.parametrize("shared", [0, 2])
def test_continuations_share_their_past_and_differ_in_the_chunk(generator, env, prompts, shared):
    for turn in played(generator, env, prompts, "local", shared).steps:
        parts = {"past": turn.past, "chunk": turn.chunk}
        parts |= {f"x{step}": t.x for step, t in enumerate(turn.denoising_steps)}
        together = {"past"} | {f"x{step}" for step in range(shared)}
        for name, value in parts.items():
            same = [torch.equal(value[row], value[other]) for row in range(6) for other in range(row)
                    if row // GROUP == other // GROUP]  # fmt: skip
            assert same == [name in together] * 6
        assert turn.number == 0 or not torch.equal(turn.past[0], turn.past[GROUP])


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_an_opening_is_its_first_streams_own_and_what_follows_differs(generator, env, prompts, chunks):
    done, seed = full(generator, env, prompts, chunks)
    leaders, keys = torch.tensor([0, 0, 0, 3, 3, 3]), stream_keys(seed, 6)
    if chunks:
        alone = stream(generator, done.embeds[:, :chunks], keys)
        torch.testing.assert_close(done.steps[0].past, alone[leaders])
        assert torch.equal(done.steps[0].past, done.steps[0].past[leaders])
    state = StreamState.start(keys)
    for number, embeds in enumerate(done.embeds[:, :chunks].unbind(1)):
        state = update_cache(generator, state, done.steps[0].past[:, 3 * number : 3 * number + 3], embeds)
    for turn in done.steps:
        alone, _ = denoise_chunk(generator, state, done.embeds[:, turn.number])
        torch.testing.assert_close(turn.chunk, alone)
        state = update_cache(generator, state, alone, done.embeds[:, turn.number])
        assert all(not torch.equal(turn.chunk[row], turn.chunk[row - 1]) for row in range(1, 6))
    for before, after in zip(done.steps, done.steps[1:], strict=False):
        assert torch.equal(after.past, torch.cat((before.past, before.chunk), 1))


def test_openings_of_every_length_are_drawn(generator, env, prompts):
    quick = replace(generator, sigmas=(1.0,))
    lengths = [opening(played(quick, env, prompts, "full", seed=seed)) for seed in range(40)]
    assert all(lengths.count(chunks) >= 3 for chunks in range(4))


def test_survivors_are_drawn_evenly(generator, codec, reward, prompts, layout):
    prompts, drawn = replace(prompts, chunks=2), []
    env = StreamGenVectorEnv(900, codec, reward, prompts, layout=replace(layout, chunks=2))
    for seed in range(4):
        before, after = played(replace(generator, sigmas=(1.0,)), env, prompts, "local", seed=seed).steps
        same = before.chunk.view(300, GROUP, -1) == after.past.view(300, GROUP, -1)[:, :1]
        assert (same.all(2).sum(1) == 1).all()
        drawn.append(same.all(2).float().argmax(1))
    shares = torch.cat(drawn).bincount(minlength=GROUP) / 1200
    assert (shares - 1 / GROUP).abs().max() < 4 * (2 / 9 / 1200) ** 0.5


@pytest.mark.parametrize(("prefix", "shared"), SHARED[1:])
def test_forked_rollouts_are_distributed_like_independent_ones(
    generator, codec, reward, prompts, layout, prefix, shared
):
    """Means of every statistic agree within errors; streams of a group depend on each other, so groups are counted."""
    env = StreamGenVectorEnv(480, codec, reward, prompts, layout=layout)
    texts = repeated(lambda batch, step: prompts.encode(["a red circle moves left"] * batch), 480, 4)

    def play(prefix, seed):
        return rollout(env, GeneratorPolicy(generator), stream_keys(seed, 480), texts, 4, prefix, shared)

    own = play("own", 1000)
    forked = [play(prefix, seed) for seed in range(1 if prefix == "local" else 4)]
    pairs = [(own.steps[turn.number], turn) for done in forked for turn in done.steps]
    cuts = {turn.number: turn.chunk.quantile(torch.tensor([0.1, 0.5, 0.9])) for turn in own.steps}
    assert {turn.number for _, turn in pairs} == {0, 1, 2, 3}

    def statistics(turn):
        chunk = turn.chunk.flatten(1)
        below = [(chunk < cut).float().mean(1) for cut in cuts[turn.number]]
        jump = (turn.chunk[:, 0] - turn.past[:, -1]).square().mean((1, 2, 3)) if turn.number else chunk[:, 0]
        return torch.stack((chunk.mean(1), chunk.square().mean(1), chunk.std(1), turn.reward, jump, *below), 1)

    for pair in pairs:
        groups = [statistics(turn).view(120, 4, -1).mean(1) for turn in pair]
        gap = groups[0].mean(0) - groups[1].mean(0)
        assert (gap.abs() < 4.5 * (groups[0].var(0) / 120 + groups[1].var(0) / 120).sqrt()).all()


def test_chunks_and_calls_are_counted(generator, env, prompts):
    expected = {("own", 0): (24, 24 * 4 + 18), ("local", 0): (24, 24 * 4 + 6), ("local", 2): (24, 4 * (4 + 12) + 6)}
    for (prefix, shared), counted in expected.items():
        done = played(generator, env, prompts, prefix, shared)
        assert (done.chunks, done.calls) == counted
    done, _ = full(generator, env, prompts, 1)
    assert (done.chunks, done.calls) == (2 + 18, 2 * 5 + 18 * 4 + 12)


@pytest.mark.parametrize("kernel", [None, FlowSDE(0.7)])
def test_chosen_transitions_are_draws_of_their_kernels(generator, env, prompts, kernel):
    generator = generator if kernel is None else replace(generator, kernel=kernel)
    pick, keys = torch.tensor([0, 1, 2, 2, 1, 0]), stream_keys(3, 6)
    for turn in played(generator, env, prompts).steps:
        choice = gather_steps(turn.denoising_steps, pick)
        for row, step in enumerate(pick.tolist()):
            t = turn.denoising_steps[step]
            assert torch.equal(choice.x[row], t.x[row]) and torch.equal(choice.x0[row], t.x0[row])
            assert choice.sigma[row] == torch.tensor(generator.sigmas[step])
        eps = torch.stack([normal(keys, turn.number, step + 1, (3, 4, 4, 4)) for step in range(3)])
        noise = eps[pick, torch.arange(6)]
        torch.testing.assert_close(choice.x_next, choice.kernel.draw(choice.x, choice.x0, noise))


def test_policy_and_environment_fork_together(generator, env, prompts):
    policy, rows = GeneratorPolicy(generator), torch.tensor([4, 4])
    observation, _ = env.reset(options={"scripts": prompts(6, 0)[1]})
    policy.reset(stream_keys(0, 6))
    observation = env.step(policy.act(observation))[0]
    branch, branch_env = policy.take(rows), env.fork(rows)
    forked = branch.act({name: value[rows] for name, value in observation.items()})
    chunk = policy.act(observation)
    torch.testing.assert_close(forked, chunk[rows])
    torch.testing.assert_close(branch_env.step(forked)[1], env.step(chunk)[1][rows])


def test_what_does_not_fit_is_told(generator, env, prompts):
    with pytest.raises(ValueError, match="whole groups of 4"):
        rollout(env, GeneratorPolicy(generator), stream_keys(0, 6), prompts(6, 0)[1], 4)
    with pytest.raises(ValueError, match="reset"):
        GeneratorPolicy(generator).act(env.reset()[0])
    for step in (-1, 4):
        with pytest.raises(ValueError, match="a fork lies at step 0 .. 3"):
            played(generator, env, prompts, "local", step)


@pytest.mark.parametrize("how", ["keep", "recache"])
def test_rollouts_of_a_short_window_evict_and_blend(env, generator, prompts, how):
    """What a student meets when it streams, eviction and an EMA sink, it meets in training: the same cache, the same
    latents, and a gradient from every chunk."""
    cache = CacheConfig(1, 6, "ema", 0.5, "relative", how)
    short = replace(generator, model=generator.model.with_cache(cache))
    keys = stream_keys(0, 6)
    played = rollout(env, GeneratorPolicy(short, grad=True), keys, repeated(prompts, 6, 1))
    assert [turn.denoising_steps[0].context.frames for turn in played.steps[1:]] == [(0, 1, 2), (0, 4, 5), (0, 7, 8)]
    assert short.evicted_in(4) == 6 and generator.evicted_in(4) == 0 and short.evicted_in(1) == 0
    expected = stream(short, played.embeds, keys)
    torch.testing.assert_close(played.latents.detach(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(self_forcing(short, played.embeds, keys, 3, True).detach(), expected, atol=1e-5, rtol=0)
    assert (expected - stream(generator, played.embeds, keys))[:, 6:].abs().max() > 1e-3
    first, last = (turn.denoising_steps[0].context.keys[0] for turn in (played.steps[1], played.steps[3]))
    assert (first[:, :4] - last[:, :4]).abs().max() > 1e-4
    for turn in played.steps:
        (gradient,) = torch.autograd.grad(turn.chunk.square().sum(), short.model.transformer.proj_out.weight)
        assert gradient.isfinite().all() and gradient.any()
    turn = played.steps[3]
    step = turn.denoising_steps[-1]
    state = prefill(short, StreamState.start(keys), turn.past, played.embeds)
    found = prediction(short, state, step.x, torch.full((6,), step.sigma), played.embeds[:, 3])
    torch.testing.assert_close(found, step.x0, atol=1e-5, rtol=0)
