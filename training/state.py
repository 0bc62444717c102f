"""What a trainer's checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..checkpoint import CheckpointError, refuse_missing, sha256_weights
from .learner import Groups, Learner
from .usage import ComputeUsage

OWN = __name__.split(".")[0]
State = tuple[Groups, dict[str, Any]]
"""Groups of tensors, and what JSON holds."""


class Stateful(Protocol):
    """What a checkpoint can hold: a trainer, a guard."""

    def state(self) -> State:
        """Everything that a bitwise resume needs."""
        ...

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        ...


def pack(
    config: Any, counts: ComputeUsage, learners: Mapping[str, Learner[Any]], extra: Mapping[str, Tensor] | None = None
) -> State:
    """The state of a trainer made of `learners` and tensors of its own; `config` is a dataclass."""
    groups: Groups = {"trainer": dict(extra or {})}
    meta: dict[str, Any] = {"config": config_settings(config), "counts": asdict(counts), "learners": {}}
    for name, learner in learners.items():
        parts, meta["learners"][name] = learner.state()
        groups |= {f"{name}-{part}": tensors for part, tensors in parts.items()}
    return groups, meta


def unpack(
    config: Any, counts: ComputeUsage, learners: Mapping[str, Learner[Any]], groups: Groups, meta: dict[str, Any]
) -> dict[str, Tensor]:
    """Inverse of `pack`: fills counts and learners, returns the extra tensors; CheckpointError for another config
    and where a part is missing."""
    whole, told = pack(config, counts, learners)
    refuse_missing("trainer", [*groups, *meta, *meta.get("learners", {})], [*whole, *told, *learners])
    if other := differences(config_settings(config), _renamed(plain(meta.get("config", {})))):
        raise CheckpointError(
            f"the checkpoint was written with another config; they differ in {', '.join(other)}: go on with that one, "
            "or give another --out"
        )
    for name, learner in learners.items():
        prefix = f"{name}-"
        parts = {group.removeprefix(prefix): value for group, value in groups.items() if group.startswith(prefix)}
        learner.load_state(parts, meta["learners"][name])
    for field, value in meta["counts"].items():
        setattr(counts, field, value)
    return groups["trainer"]


def trainer_state(trainer: Stateful) -> State:
    """The trainer's own state, and where it has a `teacher` module the SHA-256 of its weights."""
    groups, meta = trainer.state()
    return groups, meta | _teacher(trainer)


def load_trainer(trainer: Stateful, groups: Groups, meta: dict[str, Any]) -> None:
    """Inverse of `trainer_state`; CheckpointError for another teacher."""
    if _teacher(trainer).get("teacher") != meta.get("teacher"):
        raise CheckpointError("the checkpoint's run had another teacher: give that one, or another --out")
    trainer.load_state(groups, meta)


def _teacher(trainer: Stateful) -> dict[str, str]:
    teacher = getattr(trainer, "teacher", None)
    if not isinstance(teacher, nn.Module):
        return {}
    written = sum(value._version for value in teacher.parameters())
    if _DIGESTS.get(teacher, (-1, ""))[0] != written:
        _DIGESTS[teacher] = written, sha256_weights(teacher.state_dict())
    return {"teacher": _DIGESTS[teacher][1]}


_DIGESTS: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()
"""Of teachers, by how often their weights were written to: a large one takes a while."""


def differences(mine: Mapping[str, Any], found: Mapping[str, Any], place: str = "") -> list[str]:
    """Names of what two nested dicts do not agree in, such as learner.ema."""
    names: list[str] = []
    for key in sorted({*mine, *found}):
        a, b = mine.get(key), found.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differences(a, b, f"{place}{key}.")
        elif a != b or (key in mine) != (key in found):
            names.append(f"{place}{key}")
    return names


def config_settings(config: Any) -> dict[str, Any]:
    """A config as JSON holds it. A part of it that is not this package's own, such as a user's direction, says its
    class: another one with equal fields is another config."""
    found = {field.name: _settings(getattr(config, field.name)) for field in fields(config)}
    kind = type(config)
    return (
        found if kind.__module__.split(".")[0] == OWN else {"class": f"{kind.__module__}.{kind.__qualname__}", **found}
    )


_FORMER: dict[str, dict[str, str]] = {
    "betas": {"clip": "max_grad_norm"},
    "checkpoint_every": {"clip": "max_grad_norm"},
    "alike": {"among": "train_timesteps", "passes": "minibatches"},
    "sde": {"steps": "timesteps_per_update", "among": "train_timesteps", "clip": "clip_coef", "sde": "noise_level"},
    "reach": {
        "reach": "returns", "spread": "normalize_std", "decay": "gae_lambda", "placebo": "shuffle_advantages",
        "clip": "episode", "togo": "reward_to_go",
    },
    "reference_every": {"reference": "kl_coef", "reference_every": "kl_every", "credit": "advantage"},
}  # fmt: skip
"""Names that settings had in older checkpoints, by one that tells whose settings they are."""


def _renamed(value: Any) -> Any:
    """A config of an older checkpoint under the names of today."""
    if isinstance(value, list):
        return [_renamed(part) for part in value]
    if not isinstance(value, dict):
        return value
    names = {old: new for mark, known in _FORMER.items() if mark in value for old, new in known.items()}
    found = {names.get(key, key): _renamed(part) for key, part in value.items()}
    if "reach" in value:
        found["returns"] = names[found["returns"]]
    return found


def _settings(value: Any) -> Any:
    return config_settings(value) if is_dataclass(value) and not isinstance(value, type) else plain(value)


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
