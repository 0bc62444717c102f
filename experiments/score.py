"""`reelgym score FILE`: what a reward model thinks of any video file, and where it looks; or whether it was made."""

from dataclasses import fields

from .results import command_line, pick_device, write_results
from .score_detector import DetectorScorer
from .score_reward import TinyScorer, score_videoreward
from .scorer import COMMON, Config, Scorer

_TINY = "a small reward (VideoReward's folder, which holds model_config.json, goes in as --reward)"
PUBLISHED = frozenset({"prompt", "reward", "backbone", "prompt_template", "dtype", "frame_weights"})
SCORERS = {
    "reward": Scorer(
        _TINY,
        frozenset({"prompt", "reward", "frame_weights"}),
        lambda config, device: TinyScorer.load(config, device).score(config.file, config.prompt or ""),
    ),
    "videoreward": Scorer("VideoReward", PUBLISHED, score_videoreward),
    "detector": Scorer(
        "a detector",
        frozenset({"detector", "detector_weights"}),
        lambda config, device: DetectorScorer.load(config, device).score(config.file),
    ),
}


def run(config: Config) -> None:
    """Read, score, print a table, write results.json."""
    scorer = SCORERS[_chosen(config)]
    _check(config, scorer)
    device = pick_device(config.device)
    found = scorer.score(config, device)
    print(f"{config.file}: {found.read}")
    print(found.table)
    command = command_line(["reelgym", "score", str(config.file)], config)
    print(f"results: {write_results(config.out, command, [config.seed], config, found.rows, device)}")


def _chosen(config: Config) -> str:
    """The name in SCORERS of the one that the options mean."""
    if config.detector or config.detector_weights is not None:
        return "detector"
    published = config.reward is not None and (config.reward / "model_config.json").exists()
    return "videoreward" if published else "reward"


def _check(config: Config, scorer: Scorer) -> None:
    """ValueError for a missing prompt, and for options that are another scorer's."""
    if "prompt" in scorer.options and config.prompt is None:
        raise ValueError("--prompt is missing: what should the video show? Or pass --detector, which asks for none")
    taken = COMMON | scorer.options
    changed = [field.name for field in fields(config) if getattr(config, field.name) != field.default]
    if others := [f"--{name.replace('_', '-')}" for name in changed if name not in taken]:
        raise ValueError(f"{', '.join(others)}: of no use to {scorer.name}, leave it out")
