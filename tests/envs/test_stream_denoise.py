import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import reelgym  # noqa: F401
from reelgym.envs import stream_denoise
from reelgym.envs.single import SingleEnv
from reelgym.envs.stream_denoise import SIGMAS, StreamDenoiseVectorEnv
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.generator import StreamState, generate_chunk
from reelgym.models.sampler import kernel_log_prob, step_sigmas, x0_from_v
from reelgym.noise import normal, stream_keys

ROWS = torch.tensor([2, 0, 2])
STEPS = 4 * 4


@pytest.fixture
def make(codec, reward, prompts, layout):
    def made(num=3, **others):
        others = {"layout": layout, "sigmas": step_sigmas(4, 2.0), "autoreset_mode": "Disabled", **others}
        return StreamDenoiseVectorEnv(num, codec, reward, prompts, **others)

    return made


def moves(num, count=STEPS, seed=0):
    return torch.randn(count, num, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_an_episode(make):
    env = make()
    observation, info = env.reset(seed=1, options={"keys": [5, 6, 7]})
    assert env.observation_space.contains({name: value.numpy() for name, value in observation.items()})
    keys, texts, actions = torch.tensor([5, 6, 7]), env.state.clip.texts, moves(3)
    assert torch.equal(observation["noisy"], normal(keys, 0, 0, (3, 4, 4, 4)))
    for number, action in enumerate(actions):
        chunk, step = divmod(number, 4)
        assert observation["position"].tolist() == [chunk] * 3 and observation["step"].tolist() == [step] * 3
        assert observation["sigma"].tolist() == [[pytest.approx(env.sigmas[step])]] * 3
        assert list(info["text"]) == [row[chunk] for row in texts]
        observation, gained, terminated, truncated, info = env.step(action)
        if step < 3:
            assert torch.equal(observation["noisy"], action) and not gained.any()
        else:
            assert torch.equal(observation["latents"][:, 3:], action) and gained.all()
            assert torch.equal(observation["noisy"], normal(keys, chunk + 1, 0, (3, 4, 4, 4)))
        assert terminated.tolist() == [number == STEPS - 1] * 3 and not truncated.any()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(action)


def test_the_generators_transitions_played_through_it_are_its_clip_in_stream_gen(
    make, codec, reward, prompts, layout, generator
):
    env, whole = make(), StreamGenVectorEnv(3, codec, reward, prompts, layout=layout, autoreset_mode="Disabled")
    keys = stream_keys(3, 3)
    observation, _ = env.reset(seed=0, options={"keys": keys})
    whole.reset(options={"scripts": env.state.clip.texts})
    state, gained, returned = StreamState.start(keys), 0, 0
    for _ in range(layout.chunks):
        with torch.no_grad():
            chunk, denoising_steps, state = generate_chunk(generator, state, observation["prompt"])
        for transition in denoising_steps:
            assert torch.equal(observation["noisy"], transition.x)
            assert (observation["sigma"] == torch.tensor(transition.sigma)).all()
            observation, reward_of_step, terminated, _, _ = env.step(transition.x_next)
            gained = gained + reward_of_step
        seen, reward_of_chunk, _, _, _ = whole.step(chunk)
        returned = returned + reward_of_chunk
        assert torch.equal(observation["latents"], seen["latents"])
    assert terminated.all() and torch.equal(gained, returned)


def test_a_ppo_ratio_is_one_before_an_update(make, generator):
    env, keys = make(), stream_keys(0, 3)
    observation, _ = env.reset(seed=0, options={"keys": keys})
    parameters = list(generator.model.parameters())
    seen, done, old = [], [], []

    def log_prob(observation, action):
        level = env.sigmas[int(observation["step"][0]) + 1]
        sigma = float(observation["sigma"][0])
        v = generator.model(observation["noisy"], sigma, observation["prompt"], cache=None)
        x0 = x0_from_v(observation["noisy"], v, sigma)
        if action is None:
            noise = normal(keys, 0, int(observation["step"][0]) + 1, (3, 4, 4, 4))
            action = (1 - level) * x0 + level * noise
        return action, kernel_log_prob(action, x0, level, "sum")

    for _ in range(3):  # the last step of a chunk is deterministic and has no ratio
        with torch.no_grad():
            action, probability = log_prob(observation, None)
        seen, done, old = [*seen, observation], [*done, action], [*old, probability]
        observation, *_ = env.step(action)

    def ratios():
        pairs = zip(seen, done, old, strict=True)
        return torch.stack([(log_prob(at, action)[1] - before).exp() for at, action, before in pairs])

    before = ratios()
    assert (before == 1).all()
    before.sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter += 1e-4 * parameter.grad.sign()
    assert (ratios().mean() > 1).all()


def test_rows_do_not_depend_on_each_other(make):
    env, alone, keys = make(), make(1), stream_keys(9, 3)
    together, _ = env.reset(seed=0, options={"keys": keys})
    single, _ = alone.reset(options={"scripts": [env.state.clip.texts[1]], "keys": keys[1:2]})
    for action in moves(3):
        assert torch.equal(together["noisy"][1:2], single["noisy"])
        together, gained, *_ = env.step(action)
        single, earned, *_ = alone.step(action[1:2])
        torch.testing.assert_close(gained[1:2], earned)


@pytest.mark.parametrize("at", [6, 8])
def test_a_fork_continues_exactly(make, at):
    env = make()
    env.reset(seed=0)
    actions = moves(3)
    for action in actions[:at]:
        env.step(action)
    branch = env.fork(ROWS)
    for action in actions[at:]:
        kept, forked = env.step(action), branch.step(action[ROWS])
        assert torch.equal(kept[1][ROWS], forked[1])
        assert all(torch.equal(kept[0][name][ROWS], value) for name, value in forked[0].items())


def test_what_was_handed_in_or_out_can_be_written_to(make):
    env, action = make(), np.ones((3, 3, 4, 4, 4), np.float32)
    env.reset(seed=0)
    observation, *_ = env.step(action)
    action[:], observation["noisy"][:] = 7, 7
    assert (env.state.noisy == 1).all()


def test_same_step_autoreset_draws_new_noise(make):
    env = make(autoreset_mode="SameStep")
    first, _ = env.reset(seed=0)
    for action in moves(3):
        observation, _, terminated, _, info = env.step(action)
    assert terminated.all() and info["final_obs"]["position"].tolist() == [4] * 3
    assert observation["position"].tolist() == observation["step"].tolist() == [0] * 3
    assert not torch.equal(observation["noisy"], first["noisy"])


def test_what_does_not_fit_is_told(make):
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(moves(3)[0])
    with pytest.raises(ValueError, match="one integer a stream"):
        env.reset(options={"keys": [1, 2]})
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="actions have shape"):
        env.step(torch.zeros(3, 2, 4, 4, 4))
    with pytest.raises(gymnasium.error.InvalidAction, match="NaN"):
        env.step(torch.full((3, 3, 4, 4, 4), torch.nan))
    assert env.step(torch.full((3, 3, 4, 4, 4), 100.0))[0]["noisy"].max() == 100  # never clipped
    for sigmas in ((), (0.9, 0.5), (1.0, 0.5, 0.5), (1.0, 0.0)):
        with pytest.raises(ValueError, match="sigmas fall from 1"):
            make(sigmas=sigmas)
    with pytest.raises(ValueError, match="no multiple of the 4 steps"):
        stream_denoise.make(max_episode_steps=6)


def test_the_single_environment_passes_the_checker_and_is_the_vector_of_one(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(SingleEnv(make(1, render_mode="rgb_array")))
    env, vector = SingleEnv(make(1)), make(1)
    one, _ = env.reset(seed=4, options={"key": 11})
    many, _ = vector.reset(seed=4, options={"keys": [11]})
    for action in moves(1):
        assert set(one) == set(many)
        assert all(np.array_equal(value, many[name][0].numpy()) for name, value in one.items())
        one, gained, terminated, _, info = env.step(action[0].numpy())
        many, earned, *_ = vector.step(action)
        assert isinstance(gained, float) and gained == float(earned)
    assert terminated and set(info) == {"text"}


def test_render_shows_the_noisy_chunk(make, codec):
    env = make(render_mode="rgb_array_list")
    env.reset(seed=0)
    sizes = set()
    for action in moves(3):
        found = env.render()
        assert [len(row) for row in found] == [3] * 3
        sizes |= {canvas.shape for row in found for canvas in row}
        pixels = (codec.decode(env.state.noisy)[0, 0].movedim(0, -1) * 255).round()
        assert (found[0][0][23:183:20, 344:504:20] == pixels.numpy()).all()  # every 20th of 160, in the third picture
        env.step(action)
    assert len(sizes) == 1 and [len(row) for row in env.render()] == [3] * 3


def test_made_by_name_it_has_the_samplers_levels():
    env = gymnasium.make("reelgym/StreamDenoise-v0")
    observation, _ = env.reset(seed=0)
    assert observation["noisy"].shape == (3, 8, 8, 8) and observation["sigma"] == 1 and len(SIGMAS) == 4
    assert gymnasium.make_vec("reelgym/StreamDenoise-v0", 2, max_episode_steps=8).layout.chunks == 2
