"""The loop around every trainer, and what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..checkpoint import CheckpointError, has_checkpoint, save_checkpoint
from .learner import NonFiniteError
from .parts import load_parts, save_parts
from .ranks import here
from .state import State, Stateful, load_trainer, trainer_state
from .usage import ComputeUsage

if TYPE_CHECKING:
    from tqdm import tqdm

Log = Callable[[Mapping[str, float], int], None]


class Trainer(Stateful, Protocol):
    """The face of every method."""

    counts: ComputeUsage

    def update(self) -> dict[str, float]:
        """One update of the generator, and what it measured."""
        ...


class Callback(Stateful, Protocol):
    """Who watches a training from outside and may end it: guard.Guard."""

    stopped: bool
    """Whether the training is to end."""

    def should_run(self, update: int, last: int) -> bool:
        """Whether to look after this update of `last`; 0: before any that the watch has seen."""
        ...

    def evaluate(self, update: int) -> dict[str, float]:
        """Look, and return what is to be logged."""
        ...

    def on_update(self, measured: Mapping[str, float], update: int) -> dict[str, float]:
        """See what an update measured, and return what is to be logged besides."""
        ...

    def on_train_end(self) -> None:
        """The training has ended."""
        ...

    def on_train_error(self, error: str) -> None:
        """The training cannot go on, and says why."""
        ...


def fit(
    trainer: Trainer,
    updates: int,
    *,
    log: Log | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    guard: Callback | None = None,
    bar: tqdm | None = None,
) -> None:
    """Train until `updates` updates are done, going on from `checkpoint` where there is one.

    log: takes a dict and the number of updates. evaluate: its dict is logged every `evaluate_every` updates.
    checkpoint: a folder, replaced every `checkpoint_every` updates (0: at the end only). guard: looks at the start,
    every so many updates and at the end, and may end the training, as it does where the training diverges. bar: moves
    on with every update and shows the loss. Of several processes (ranks.here) the first alone logs, evaluates and
    writes, and what was measured is the mean over all.
    NonFiniteError where a training without a guard diverges.
    """
    ranks = here()
    if checkpoint is not None and has_checkpoint(checkpoint):
        _resume(trainer, guard, checkpoint)
    if bar is not None:
        bar.initial = bar.n = trainer.counts.updates
    if guard is not None and guard.should_run(0, updates):
        first = guard.evaluate(trainer.counts.updates)
        if log is not None and ranks.first:
            log(first, trainer.counts.updates)
    while trainer.counts.updates < updates and not (guard is not None and guard.stopped):
        try:
            measured = ranks.means(trainer.update())
        except NonFiniteError as error:
            if guard is None:
                raise
            guard.on_train_error(str(error))
            if checkpoint is not None:
                _save(checkpoint, trainer, guard)
            break
        done = trainer.counts.updates
        if guard is not None:
            measured |= guard.on_update(measured, done)
        if evaluate is not None and evaluate_every and done % evaluate_every == 0:
            measured |= ranks.told(evaluate)
        if guard is not None and not guard.stopped and guard.should_run(done, updates):
            measured |= guard.evaluate(done)
        if guard is not None and done == updates:
            guard.on_train_end()
        if log is not None and ranks.first:
            log(measured, done)
        if bar is not None:
            _advance(bar, measured)
        ended = done == updates or (guard is not None and guard.stopped)
        if checkpoint is not None and (ended or (checkpoint_every and done % checkpoint_every == 0)):
            _save(checkpoint, trainer, guard)


def _advance(bar: tqdm, measured: Mapping[str, float]) -> None:
    if "loss" in measured:
        bar.set_postfix(loss=f"{measured['loss']:.4f}", refresh=False)
    bar.update()


def _save(checkpoint: Path, trainer: Trainer, guard: Callback | None) -> None:
    state, ranks = _state(trainer, guard), here()
    if ranks.count == 1:
        save_checkpoint(checkpoint, *state)
    else:
        save_parts(checkpoint, state, ranks)


def _state(trainer: Trainer, guard: Callback | None) -> State:
    groups, meta = trainer_state(trainer)
    if guard is None:
        return groups, meta
    watched, told = guard.state()
    return groups | {f"{GUARD}{name}": group for name, group in watched.items()}, meta | {"guard": told}


def _resume(trainer: Trainer, guard: Callback | None, checkpoint: Path) -> None:
    """Inverse of `_state`; CheckpointError where only one of checkpoint and call has a guard."""
    groups, meta = load_parts(checkpoint, _state(trainer, guard)[0], here())
    if ("guard" in meta) != (guard is not None):
        raise CheckpointError(
            f"{checkpoint}: the checkpoint and this call differ in whether there is a guard: call as before, or give "
            "another --out"
        )
    if guard is not None:
        watched = {name.removeprefix(GUARD): group for name, group in groups.items() if name.startswith(GUARD)}
        guard.load_state(watched, meta["guard"])
    load_trainer(trainer, {name: group for name, group in groups.items() if not name.startswith(GUARD)}, meta)


GUARD = "guard-"
