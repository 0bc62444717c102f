"""VideoReward (2501.13918), the published video reward model, through transformers' Qwen2-VL."""

from .model import VideoReward

__all__ = ["VideoReward"]
