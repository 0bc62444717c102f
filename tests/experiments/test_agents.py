"""`reelgym agents`, `reelgym train AGENT`, `reelgym generate --agent`, on an untrained stack."""

import json
from dataclasses import replace

import pytest
import torch

from reelgym.agents import recipes
from reelgym.agents.recipes import AGENT_RECIPES, DETECT, STEER
from reelgym.envs import stream_detect, stream_steer
from reelgym.experiments import agents
from reelgym.experiments.cli import main
from reelgym.experiments.evaluate import EvalConfig
from reelgym.experiments.learning import detecting, runs, steering, tables
from reelgym.noise import stream_keys

EXAM = EvalConfig(prompts=2, clips=2, long_prompts=0)


@pytest.fixture
def few(monkeypatch):
    """Recipes with so little of everything that a test can run them."""
    small = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "learning_starts": 4, "gradient_steps": 1}
    for key, recipe in AGENT_RECIPES.items():
        settings = {name: small.get(name, value) for name, value in recipe.settings.items()}
        env = {"clips": 16} if key[1] == DETECT else {}
        changed = replace(recipe, streams=4, steps=16, rollout=16, epochs=1, batch=8, settings=settings, env=env)
        monkeypatch.setitem(recipes.AGENT_RECIPES, key, changed)


@pytest.fixture
def steer(stack):
    return stream_steer.make(stack, 4, split="test", autoreset_mode="Disabled")


def test_an_exam_of_steering(steer):
    action = steering.setting(steer, 2)
    found = steering.evaluated_steering(steer, lambda seen: action.expand(len(seen), -1), EXAM, 3)
    again = steering.evaluated_steering(steer, lambda seen: action.expand(len(seen), -1), EXAM, 3)
    other = steering.evaluated_steering(steer, lambda seen: action.expand(len(seen), -1), EXAM, 4)
    assert found == again != other and {len(column) for column in found.values()} == {2}
    assert found["passes"] == [3, 3]
    paid = [q - r for q, r in zip(found["quality"], found["reward"], strict=True)]
    assert paid == pytest.approx([3 * steer.settings.price] * 2)
    assert set(found) == {"reward", "quality", "passes", "VQ", "MQ", "TA", "physics", "total"}


def test_settings_mean_what_they_say(steer):
    for steps in (1, 2, 3, 4):
        for past in (1, 2, 3):
            _, how = steer.steering(steering.setting(steer, steps, 0.5, past)[None])
            assert (int(how.steps), int(how.past), float(how.guidance)) == (steps, 3 * past, 1.5)
    assert float(steer.steering(steering.setting(steer, 4)[None])[1].guidance) == 1
    assert len(steering.settings_grid(steer)) == 16


class Lottery:
    """Stands in for StreamSteer: the second number of an action is what it earns, with noise."""

    num_envs = 64

    def __init__(self, real):
        self.settings, self.generator, self.most_past, self.layout = (
            real.settings, real.generator, real.most_past, real.layout,
        )  # fmt: skip

    def reset(self, seed=None):
        self.random = torch.Generator().manual_seed(seed)
        self.count = 0

    def step(self, actions):
        self.count += len(actions)
        return None, actions[:, 1] + 0.3 * torch.randn(len(actions), generator=self.random), None


def test_the_search_finds_the_best_setting_within_its_steps(steer):
    lottery = Lottery(steer)
    best = steering.best_fixed(lottery, 8192, seed=0)
    assert best[1] > 0.8 and lottery.count == 8192


def test_the_planner_is_no_worse_than_what_it_plans_with(steer):
    plain = steering.setting(steer, 3)
    fixed = steering.evaluated_steering(steer, lambda seen: plain.expand(len(seen), -1), EXAM, 0)
    tries = torch.stack([plain, steering.setting(steer, 1), steering.setting(steer, 4)])
    found = steering.evaluated_steering(steer, steering.planned(steer, tries, plain), EXAM, 0)
    assert sum(found["reward"]) >= sum(fixed["reward"]) - 1e-4


def test_an_exam_of_detection(stack):
    env = stream_detect.make(stack, 8, clips=16, autoreset_mode="Disabled", check=False)
    told = detecting.evaluated(env, lambda seen: 1 + env.dataset.label[env.state.clip].long())
    assert told["reward"] == told["right"] == [1] * 16 and told["chunks"] == [1] * 16
    assert told["called_fake"] == env.dataset.label.float().tolist() and told["family"] == env.dataset.family.tolist()
    late = detecting.evaluated(env, detecting.rule(env, 2, 2))
    cost = 2 * env.settings.wait_cost
    paid = [(1.0 if fake else -1.0) - cost for fake in env.dataset.label.tolist()]
    assert late["reward"] == pytest.approx(paid) and late["chunks"] == [3] * 16
    asleep = detecting.evaluated(env, lambda seen: torch.zeros(len(seen), dtype=torch.int64))
    assert asleep["right"] == [0] * 16 and asleep["chunks"] == [4] * 16
    odd = stream_detect.make(stack, 5, clips=16, autoreset_mode="Disabled", check=False)
    with pytest.raises(ValueError, match="5 rows do not divide a dataset of 16 clips"):
        detecting.evaluated(odd, lambda seen: seen)


def test_agents_runs_and_goes_on(stack, few, tmp_path, monkeypatch, capsys):
    tiny = {"prompts": 2, "clips": 1, "long_prompts": 0}
    exams = {"exam": EvalConfig(**tiny), "validation": EvalConfig(**tiny, split="validation")}
    preset = agents.AgentPreset(runs.AgentBudget(**exams, clips=16, steps=16, points=1), seeds=2)
    monkeypatch.setitem(agents.AGENT_PRESETS, "smoke", preset)
    config = agents.Config(preset="smoke", out=tmp_path / "out", workers=1, stack=stack)
    agents.run(config)
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    kinds = {(row["kind"], row["env"], row["row"]) for row in results["rows"]}
    for env, row in agents.cells(config):
        assert ("row", env, row) in kinds and ("run", env, row) in kinds and f"| {tables.AGENT_LABELS[row]} |" in first
    assert {row for kind, _, row in kinds if kind == "curve"} == {"sb3-ppo", "sb3-sac", "tianshou-ppo"}
    seeds = {row["row"]: row["seeds"] for row in results["rows"] if row["kind"] == "row" and row["env"] == STEER}
    assert seeds["sb3-sac"] == seeds["fixed"] == 2 and seeds["tianshou-ppo"] == 1
    assert (tmp_path / "out" / "StreamSteer-v0.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    monkeypatch.setattr(runs, "trained", None)
    agents.run(config)
    assert capsys.readouterr().out == first


def test_train_and_generate(stack, few, tmp_path, capsys):
    out = tmp_path / "agent"
    assert main(["train", "sb3-ppo", "--weights", stack, "--out", str(out)]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.splitlines()[1] == f"agent: {out / 'agent'}"
    clip = ["--out", str(tmp_path / "clip.mp4"), "--weights", stack, "--device", "cpu"]
    script = "a red circle moves left fast ; then a blue square moves up"
    assert main(["generate", script, "--agent", str(out / "agent"), *clip]) == 0, capsys.readouterr().err
    assert "12 frames, 1.5 s, by the student, steered (" in capsys.readouterr().out
    assert main(["train", "sb3-ppo", "--env", DETECT, "--weights", stack, "--out", str(tmp_path / "detector")]) == 0
    capsys.readouterr()
    assert main(["generate", script, "--agent", str(tmp_path / "detector" / "agent"), *clip]) == 1
    assert "this agent acts in reelgym/StreamDetect-v0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "codec", "--env", STEER], "--env is where an agent learns"),
        (["train", "sb3-sac", "--env", DETECT], "no settings are kept for sb3-sac in reelgym/StreamDetect-v0"),
        (["train", "sb3-ppo", "--install"], "have no use for sb3-ppo"),
        (["generate", "a red circle rests", "--agent", "nowhere"], "nowhere: no checkpoint here"),
        (["generate", "a red circle rests", "--agent", "nowhere", "--model", "teacher"], "an agent steers the student"),
    ],
)
def test_what_does_not_fit_is_told(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1 and words in capsys.readouterr().err


def test_keys_of_an_exam_are_met_nowhere_else():
    keys = steering.exam_keys(0, 8)
    assert len(set(keys.tolist())) == 8 and not set(keys.tolist()) & set(stream_keys(0, 64).tolist())
