import gymnasium
import pytest
import torch

from reelgym.envs.single import SingleEnv
from reelgym.envs.stream_steer import SteerSettings, StreamSteerVectorEnv
from reelgym.models.generator import StreamState, generate_chunk
from reelgym.noise import stream_keys
from reelgym.rewards.windows import ChunkLayout

ROWS = torch.tensor([2, 0, 2])
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SCRIPTS = ["a red circle moves left ; then a blue circle moves right", "a blue square moves right"] * 2


@pytest.fixture
def make(codec, reward, prompts, generator, layout):
    def build(num=4, **others):
        return StreamSteerVectorEnv(
            num, codec, reward, prompts, generator, **{"layout": layout, "autoreset_mode": "Disabled", **others}
        )

    return build


def actions(count, steps=4, seed=0):
    return 2 * torch.rand(steps, count, 7, generator=torch.Generator().manual_seed(seed)) - 1


def neutral(count):
    return torch.tensor([0.0, 0, 0, 0, -1, 1, 1]).expand(count, -1)


def begin(env, count=4):
    return env.reset(options={"scripts": SCRIPTS[:count], "keys": stream_keys(5, count)})


def test_what_an_action_means(make):
    env = make(1)
    for action, steps, past, weight in (
        ((-1, -1, -1), 1, 3, 1.0),
        ((0, 0, 0), 3, 6, 1.0),
        ((0.5, 0.49, 0.2), 3, 6, 1.5),
        ((1, 1, 1), 4, 9, 2.0),
    ):
        leads, how = env.steering(torch.tensor([[0.1, -0.2, 0.3, 0.4, *action]]))
        assert (int(how.steps), int(how.past), float(how.guidance)) == (steps, past, weight)
        assert leads.tolist()[0] == pytest.approx([0.1, -0.2, 0.3, 0.4])


def test_neutral_actions_make_the_generators_own_clip_and_pay_for_it(make, generator, reward, codec):
    env = make()
    begin(env)
    state = StreamState.start(stream_keys(5, 4))
    latents = []
    for chunk in range(4):
        prompt = env.state.clip.prompt
        with torch.no_grad():
            x0, _, state = generate_chunk(generator, state, prompt.embeds)
        latents.append(x0)
        _, gained, ended, _, info = env.step(neutral(4))
        torch.testing.assert_close(env.state.clip.latents[:, -3:], x0, **CLOSE)
        window = codec.decode(torch.cat(latents[-2:], 1))
        quality = reward(window, prompt).reward
        torch.testing.assert_close(gained, (quality - 5 * env.settings.price) / 4, **CLOSE)
        assert info["evaluations"].tolist() == [5] * 4 and ended.all() == (chunk == 3)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(neutral(4))


def test_the_observation_is_what_its_layout_says(make):
    env = make()
    seen, info = begin(env)
    parts = {name: seen[:, part] for name, part in env.columns.items()}
    assert seen.shape == (4, env.single_observation_space.shape[0]) and env.observation_space.contains(seen.numpy())
    assert parts["latents"].count_nonzero() == parts["scores"].count_nonzero() == parts["action"].count_nonzero() == 0
    assert parts["position"].argmax(1).tolist() == [0] * 4 and list(info["text"])[1] == SCRIPTS[1]
    ages = []
    for number, action in enumerate(actions(4), 1):
        seen, *_ = env.step(action)
        ages.append(seen[:2, env.columns["age"]].flatten().tolist())
        clip = env.state.clip
        assert seen[:, env.columns["position"]].argmax(1).tolist() == [number] * 4
        torch.testing.assert_close(seen[:, env.columns["action"]], action)
        torch.testing.assert_close(seen[:, env.columns["scores"]], clip.scores)
        torch.testing.assert_close(seen[:, env.columns["prompt"]], clip.prompt.embeds.mean(1))
        corner = clip.latents[:, -1, 0, :2, :2].mean((1, 2))
        torch.testing.assert_close(seen[:, env.columns["latents"]][:, 16], corner)
    assert [age[0] for age in ages] == [0.25, 0, 0.25, 0.5] and [age[1] for age in ages] == [0.25, 0.5, 0.75, 1.0]


def test_one_is_the_vector_of_one(make):
    env, vector = SingleEnv(make(1)), make(1)
    one, _ = env.reset(seed=4)
    many, _ = vector.reset(seed=4)
    assert (one == many[0].numpy()).all()
    for action in actions(1):
        seen, gained, terminated, _, info = env.step(action[0].numpy())
        other, reward, *_ = vector.step(action)
        assert gained == float(reward) and (seen == other[0].numpy()).all()
    assert terminated and set(info) == {"text", "evaluations"}
    env.reset(options={"script": SCRIPTS[0], "key": 7})
    assert env.vector.state.stream.keys.tolist() == [7]


def test_rows_do_not_depend_on_each_other(make):
    env, alone = make(), make(1)
    begin(env)
    alone.reset(options={"scripts": SCRIPTS[1:2], "keys": stream_keys(5, 4)[1:2]})
    for action in actions(4):
        together, single = env.step(action), alone.step(action[1:2])
        torch.testing.assert_close(together[0][1:2], single[0], **CLOSE)
        torch.testing.assert_close(together[1][1:2], single[1], **CLOSE)


def test_a_fork_continues_exactly(make):
    env = make()
    begin(env)
    played = actions(4)
    for action in played[:2]:
        env.step(action)
    branch = env.fork(ROWS)
    for action in played[2:]:
        kept, forked = env.step(action), branch.step(action[ROWS])
        torch.testing.assert_close(kept[0][ROWS], forked[0], **CLOSE)
        torch.testing.assert_close(kept[1][ROWS], forked[1], **CLOSE)


def test_a_seed_decides_prompts_and_noise(make):
    first, second, other = make(), make(), make()
    for env, seed in ((first, 3), (second, 3), (other, 4)):
        env.reset(seed=seed)
    for action in actions(4):
        one, two, three = (env.step(action)[0] for env in (first, second, other))
        assert torch.equal(one, two) and not torch.equal(one, three)


def test_autoreset_begins_other_clips(make):
    env = make(autoreset_mode="SameStep")
    env.reset(seed=0)
    keys = env.state.stream.keys
    for action in actions(4):
        seen, _, ended, _, info = env.step(action)
    assert ended.all() and info["final_obs"][:, env.columns["position"]].argmax(1).tolist() == [4] * 4
    assert seen[:, env.columns["position"]].argmax(1).tolist() == [0] * 4
    assert not torch.equal(env.state.stream.keys, keys)


def test_more_steps_and_guidance_cost_what_is_stated(make):
    env = make(settings=SteerSettings(price=1000.0))
    begin(env)
    action = neutral(4).clone()
    action[:, -2] = torch.tensor([-1.0, -0.2, 0.2, 1.0])
    action[3, -3] = 0.1
    reward = env.step(action)[1]
    assert (reward * 4 / 1000).round().tolist() == [-2, -3, -4, -9]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (torch.zeros(4, 6), "shape"),
        (torch.zeros(4, 7, dtype=torch.int64), "expected floating point"),
        (torch.full((4, 7), 1.5), "clip them"),
        (torch.full((4, 7), float("nan")), "NaN"),
    ],
)
def test_actions_that_do_not_fit(make, action, words):
    env = make()
    begin(env)
    with pytest.raises(gymnasium.error.InvalidAction, match=words):
        env.step(action)


def test_what_does_not_fit_is_told(make):
    env = make()
    with pytest.raises(ValueError, match="unknown option 'script': reset takes keys, reset_mask, scripts"):
        env.reset(options={"script": "a red circle moves left"})
    with pytest.raises(ValueError, match="keys have shape"):
        env.reset(options={"keys": [1, 2]})
    with pytest.raises(ValueError, match="unknown word 'green'"):
        env.reset(options={"scripts": ["a green circle moves left"] * 4})
    with pytest.raises(ValueError, match="the generator makes chunks of"):
        make(layout=ChunkLayout(chunks=4, frames_per_chunk=2))
    with pytest.raises(ValueError, match="at least 0"):
        SteerSettings(price=-1)


def test_a_prompt_that_an_opening_began_is_no_longer_new(stack):
    from reelgym.envs.stream_steer import make

    env = make(stack, 4, slice="cut", autoreset_mode="Disabled")
    seen, _ = env.reset(seed=0)
    assert seen[:, env.columns["position"]].argmax(1).tolist() == [1] * 4
    assert seen[:, env.columns["age"]].flatten().tolist() == [0.25] * 4
    ages = [env.step(action)[0][0, env.columns["age"]].item() for action in actions(4, 3)]
    assert ages == [0, 0.25, 0.5]


def test_nothing_that_is_handed_out_or_in_is_part_of_the_state(make):
    env, keys = make(), stream_keys(5, 4)
    env.reset(options={"scripts": SCRIPTS, "keys": keys})
    action = actions(4)[0]
    _, _, _, _, info = env.step(action)
    before = env.state.action.clone(), env.state.evaluations.clone(), env.state.stream.keys.clone()
    for tensor in (action, info["evaluations"], keys):
        tensor.zero_()
    after = env.state.action, env.state.evaluations, env.state.stream.keys
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
