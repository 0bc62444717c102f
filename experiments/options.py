"""Options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..envs.stack import StackSpec
from ..plugins import installed
from .results import pick_device


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Which models, and where they run."""

    stack: Annotated[str, tyro.conf.arg(aliases=["--weights"])] = "tiny"
    """The stack of models: a name (tiny is shipped), a folder of parts that `reelgym train` made, a stack.toml, or an
    import path module:name."""
    reward: str = ""
    """A reward in place of the stack's: an import path module:name, or the name that an installed package gives it."""
    world: str = ""
    """A world in place of ShapeStream: an import path module:name (docs/world.md), or an installed name."""
    device: str = "auto"
    """auto, cpu or cuda."""

    @property
    def spec(self) -> StackSpec:
        """What jobs load; ValueError for a device that is not there."""
        place = Path(self.stack)
        stack = str(place.resolve()) if self.stack != "tiny" and place.exists() else self.stack
        stack = stack if place.exists() else installed("stacks").get(stack, stack)
        named = {"rewards": self.reward, "worlds": self.world}
        reward, world = (installed(group).get(name, name) for group, name in named.items())
        return StackSpec(stack, reward, world, str(pick_device(self.device)))
