"""Reinforcement learning for streaming video; importing it registers the environments with Gymnasium."""

from .envs.registration import register_envs

register_envs()
