"""Reinforcement learning for streaming video; importing it registers the environments with Gymnasium.

What most programs need is here; each name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .envs.registration import register_envs

if TYPE_CHECKING:
    from .agents.advantage import AdvantageEstimator
    from .agents.finetune import FineTune, FineTuneConfig
    from .agents.finetune_recipes import FINETUNE
    from .agents.forward_process import ForwardProcess
    from .agents.policy_gradient import PolicyGradient
    from .agents.reward_gradient import RewardGradient
    from .agents.rollout import GeneratorPolicy
    from .distill.recipes import DISTILL
    from .envs.adapters.sb3 import SB3VecEnv
    from .envs.recording import RecordClips
    from .envs.stack import Stack
    from .envs.stream_gen import StreamGenVectorEnv
    from .models.generator import StreamState, generate_chunk
    from .models.prompts import PromptBatch
    from .models.streaming import StreamingGenerator
    from .noise import stream_keys
    from .rewards.compose import CallableReward, EnsembleReward, JoinedReward, detector_reward
    from .rewards.measures import MeasureReward
    from .rewards.stream_reward import RewardSettings, StreamReward
    from .training.guard import Guard, GuardConfig
    from .training.learner import LearnerConfig
    from .training.loop import fit
    from .training.mixture import Mixture

__all__ = [
    "CallableReward",
    "AdvantageEstimator",
    "DISTILL",
    "EnsembleReward",
    "FINETUNE",
    "FineTune",
    "FineTuneConfig",
    "ForwardProcess",
    "GeneratorPolicy",
    "Guard",
    "GuardConfig",
    "JoinedReward",
    "LearnerConfig",
    "MeasureReward",
    "Mixture",
    "PolicyGradient",
    "PromptBatch",
    "RecordClips",
    "RewardGradient",
    "RewardSettings",
    "SB3VecEnv",
    "Stack",
    "StreamGenVectorEnv",
    "StreamReward",
    "StreamState",
    "StreamingGenerator",
    "detector_reward",
    "fit",
    "generate_chunk",
    "stream_keys",
]

_HOMES = {
    "envs.stack": ("Stack",),
    "models.streaming": ("StreamingGenerator",),
    "models.generator": ("StreamState", "generate_chunk"),
    "models.prompts": ("PromptBatch",),
    "noise": ("stream_keys",),
    "rewards.stream_reward": ("RewardSettings", "StreamReward"),
    "rewards.compose": ("CallableReward", "EnsembleReward", "JoinedReward", "detector_reward"),
    "rewards.measures": ("MeasureReward",),
    "envs.stream_gen": ("StreamGenVectorEnv",),
    "envs.recording": ("RecordClips",),
    "envs.adapters.sb3": ("SB3VecEnv",),
    "training.loop": ("fit",),
    "training.mixture": ("Mixture",),
    "training.learner": ("LearnerConfig",),
    "training.guard": ("Guard", "GuardConfig"),
    "agents.rollout": ("GeneratorPolicy",),
    "agents.advantage": ("AdvantageEstimator",),
    "agents.finetune": ("FineTune", "FineTuneConfig"),
    "agents.finetune_recipes": ("FINETUNE",),
    "agents.policy_gradient": ("PolicyGradient",),
    "agents.forward_process": ("ForwardProcess",),
    "agents.reward_gradient": ("RewardGradient",),
    "distill.recipes": ("DISTILL",),
}

register_envs()


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
