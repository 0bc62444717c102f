"""`reelgym train TARGET`: make one part of the tiny stack, or a student or a detector of a stack of one's own, measure
it, and write it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..agents.recipes import AGENTS, STEER
from ..envs.stack import Stack, StackSpec
from ..models.tiny import WEIGHTS, save_tiny
from ..training.ranks import here, join
from .jobs import on_threads
from .pretrain.loop import Made, PartRecipe
from .pretrain.pairs import PairsRecipe, summary
from .results import pick_device
from .train_agent import train_agent

Target = Literal[
    "codec", "teacher", "student", "reward", "heldout", "local", "detector", "rival",
    "sb3-ppo", "sb3-sac", "tianshou-ppo",
]  # fmt: skip

OWN_TARGETS = ("student", "detector", "rival")
"""What --stack trains."""
OWN_STEPS = 1000
"""Updates of a student of one's own, if nothing else is asked for."""


@dataclass(frozen=True)
class Config:
    """Train the codec first, then teacher, student, reward and detectors: each reads the ones before it. Agents of
    other libraries (sb3-ppo, sb3-sac, tianshou-ppo) learn in an environment over these parts."""

    target: Annotated[Target, tyro.conf.Positional]
    """The part, or the agent, to train; heldout: the reward's recipe from the next seed, for who watches over it;
    local: the stack's reward with a VQ whose saliency lies on the damage; rival: a detector that sees little, which
    self-play starts from."""
    out: Path | None = None
    """Folder for the log, the resumable checkpoint and the finished weights; runs/TARGET by default, for an agent
    runs/TARGET-ENVIRONMENT."""
    weights: Path = WEIGHTS
    """Folder with the finished parts that this one needs."""
    stack: str | None = None
    """A stack of your own, in place of `weights`: a student of its teacher, or a detector, learns from its clips."""
    recipe: str | None = None
    """With --stack, of a student: teacher-forcing (by default) or continued make the teacher causal; consistency and
    on-policy make the stack's student fast; "teacher-forcing+consistency" does one after the other."""
    batch: int | None = None
    """With --stack: clips an update, if not the recipe's own."""
    steps: int | None = None
    """Optimiser steps (agents: steps of the environment), if not the recipe's own."""
    stop: int | None = None
    """Step at which to end before the schedule does."""
    seed: int = 0
    """Everything random follows from it."""
    device: str = "cpu"
    """The tiny stack trains on the CPU; with --stack also auto or cuda."""
    threads: int = 2
    """Torch threads; agents learn on one."""
    compile: bool = False
    """Train through torch.compile (needs a C++ compiler)."""
    install: bool = False
    """Copy the finished weights into the `weights` folder."""
    env: str | None = None
    """Agents alone: id of the environment, reelgym/StreamSteer-v0 by default."""
    pairs: Path | None = None
    """Reward alone: a CSV file of your own preference pairs to train on, instead of the world's clips; its columns are
    path_A, path_B, prompt, VQ, MQ, TA."""
    fps: float = PairsRecipe.fps
    """With --pairs: frames per second at which the videos are sampled."""
    size: int = PairsRecipe.size
    """With --pairs: side in pixels that frames are brought to, a multiple of 8."""
    validation: float = PairsRecipe.validation
    """With --pairs: share of the pairs that the reward is measured on."""


def run(config: Config) -> None:
    """Train, measure, save; an interrupted run goes on from its last checkpoint (an agent's begins again)."""
    _check(config)
    join()
    with on_threads(config.threads):
        _train(config)


def _train(config: Config) -> None:
    out = config.out or Path("runs") / _name(config)
    out.mkdir(parents=True, exist_ok=True)
    if config.stack is not None:
        return _train_own(config, config.stack, out)
    if config.target in AGENTS:
        train_agent(config.target, config.env, config.steps, config.seed, out, config.weights)
        return
    recipe = _recipe(config)
    if config.pairs is not None:
        made = recipe.train_on(config.pairs, out)
    else:
        stack = Stack({}) if config.target == "codec" else Stack.load(config.weights)
        made = recipe.train(config.target, stack, out)
    _save(config, recipe, made, out)


def _train_own(config: Config, source: str, out: Path) -> None:
    """A part of a stack of one's own."""
    from .pretrain.own_student import train_own_student

    stack = Stack.load(source, pick_device(config.device))
    if config.target != "student":
        return _train_own_detector(config, stack, out)
    recipe, steps = config.recipe or "teacher-forcing", config.steps or OWN_STEPS
    place = train_own_student(stack, recipe, steps, out, batch=config.batch, seed=config.seed)
    print(f"{config.target}: {place}")


def _train_own_detector(config: Config, stack: Stack, out: Path) -> None:
    """A detector of a stack of one's own, in a folder that its toml may name."""
    recipe = _recipe(config)
    if config.batch is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, batch=config.batch))
    source = StackSpec(str(Path(str(config.stack)).resolve()), device=str(stack.device))
    _save(config, recipe, recipe.train(config.target, stack, out, source), out)


def _save(config: Config, recipe: Any, made: Made, out: Path) -> None:
    """The finished weights with their manifest, and a line about them."""
    manifest: dict[str, Any] = {
        "part": config.target,
        "recipe": asdict(recipe),
        "seed": recipe.schedule.seed,
        "steps": recipe.schedule.end,
        "quality": made.quality,
        **made.reads,
    }
    if not here().first:
        return
    folder = out / "weights"
    for place in (folder, config.weights / config.target) if config.install else (folder,):
        save_tiny(place, made.module, manifest)
    print(summary(made) if config.pairs else " ".join(f"{n}={value:.4f}" for n, value in made.quality.items()))
    print(f"weights: {folder}")


def _name(config: Config) -> str:
    """Of the folder below runs/: the part's, or the agent's and its environment's."""
    place = (config.env or STEER).split("/")[-1]
    return f"{config.target}-{place}" if config.target in AGENTS else config.target


def _check(config: Config) -> None:
    """ValueError for options that do not go together."""
    if config.stack is not None:
        return _check_own(config)
    if config.recipe is not None or config.batch is not None or config.device != "cpu":
        raise ValueError("--recipe, --batch and another device than cpu are for --stack: give that too")
    if config.env is not None and config.target not in AGENTS:
        raise ValueError(f"--env is where an agent learns; the {config.target} learns in none")
    if config.target in AGENTS and (config.install or config.stop or config.compile or config.pairs):
        raise ValueError(f"--install, --stop, --compile and --pairs have no use for {config.target}: leave them out")
    data = (config.fps, config.size, config.validation)
    if config.pairs is None and data != (Config.fps, Config.size, Config.validation):
        raise ValueError("--fps, --size and --validation say how to read --pairs: give that too")
    if config.target not in ("codec", *AGENTS) and not config.weights.is_dir():
        raise ValueError(f"{config.weights}: no such folder; begin with reelgym train codec --weights DIR --install")
    if config.pairs is not None and config.target != "reward":
        raise ValueError(f"--pairs trains the reward, not the {config.target}: use reelgym train reward --pairs")
    if config.target in ("detector", "rival") and config.compile:
        raise ValueError(f"--compile has no use for the {config.target}: leave it out")
    if config.pairs is not None and (config.compile or config.weights != WEIGHTS):
        raise ValueError("--compile and --weights have no use with --pairs: leave them out")
    if config.pairs is not None and config.install:
        raise ValueError(
            "--install would put a reward with the vocabulary of your pairs where the tiny stack needs its own; "
            "leave it out, the weights are in OUT/weights"
        )


def _check_own(config: Config) -> None:
    """The same, where a part of a stack of one's own is trained."""
    if config.target not in OWN_TARGETS:
        raise ValueError(f"--stack trains {' or '.join(OWN_TARGETS)}, not the {config.target}")
    if config.weights != WEIGHTS or config.install or config.stop or config.compile or config.pairs:
        raise ValueError("--weights, --install, --stop, --compile and --pairs have no use with --stack: leave them out")
    if config.recipe is not None and config.target != "student":
        raise ValueError(f"--recipe says how a student learns, not the {config.target}: leave it out")
    if (config.steps or 1) < 1 or (config.batch or 1) < 1:
        raise ValueError("--steps and --batch must be at least 1")


def _recipe(config: Config) -> Any:
    """How the target is made: its own recipe, as long as the options ask for."""
    from .pretrain import codec, detector, local, reward, student, teacher

    recipes: dict[str, PartRecipe] = {
        "codec": codec.CodecRecipe(),
        "teacher": teacher.TeacherRecipe(),
        "student": student.StudentRecipe(),
        "reward": reward.RewardRecipe(),
        "heldout": reward.RewardRecipe(),
        "local": local.LocalRecipe(),
        **detector.DETECTOR_RECIPES,
    }
    recipe: Any = recipes[config.target]
    if config.pairs is not None:
        recipe = PairsRecipe(config.fps, config.size, config.validation)
    seed, length = config.seed + (config.target == "heldout"), recipe.schedule
    length = replace(length, seed=seed, steps=config.steps or length.steps, stop=config.stop)
    known = {"compile": config.compile} if hasattr(recipe, "compile") else {}
    return replace(recipe, schedule=length, **known)
