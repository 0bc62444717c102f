"""What an update would cost, in bytes and floating-point operations, found without doing it: the real trainer runs on
tensors that have shapes and no content."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper
from torch.utils.hooks import RemovableHandle

from ..envs.stack import Stack
from ..models.causal_attention import causal_bias, rotary_turn
from ..models.lora import AdapterConfig
from ..models.videoreward.pixels import resampling_matrix
from ..models.wan import CausalWan
from .learner import Learner
from .pretence import Pretence
from .recipe import Recipe

_TABLES = (rotary_turn, causal_bias, resampling_matrix)
"""Functions that remember tensors."""
OTHER = "other"
"""Where work is counted that none of the named modules does."""


@dataclass(frozen=True)
class Held:
    """Bytes that come and go: gradients of what is trained, and all else, which backward passes keep or which is being
    computed."""

    gradients: int = 0
    activations: int = 0

    @property
    def bytes(self) -> int:
        """Both."""
        return self.gradients + self.activations


@dataclass(frozen=True)
class Footprint:
    """What an update takes in one process.

    weights: bytes of each module in memory.   optimizer: bytes that optimisers keep, with float32 copies and averages.
    held: what is held besides when most is, by the module that works then.   flops: operations by module; a
    multiplication and an addition are two.   blocks: of modules that can lie in shards, bytes of the largest block.
    """

    weights: Mapping[str, int]
    optimizer: int
    held: Mapping[str, Held]
    flops: Mapping[str, int]
    blocks: Mapping[str, int]

    def memory(self, processes: int = 1, sharded: bool = False) -> int:
        """Most bytes at once in each of so many processes; in shards, three blocks at a time are whole."""
        parts = processes if sharded else 1
        split = sum(size for name, size in self.weights.items() if name in self.blocks) + self.optimizer
        whole = sum(size for name, size in self.weights.items() if name not in self.blocks)
        most = max((one.gradients // parts + one.activations for one in self.held.values()), default=0)
        gathered = 3 * max(self.blocks.values(), default=0) if sharded else 0
        return split // parts + whole + most + gathered

    def at(self, less: Footprint, layers: tuple[int, int], wanted: int) -> Footprint:
        """With `wanted` layers, of this one of layers[0] and of `less` of layers[1]: everything grows by the layer."""
        reach = (wanted - layers[0]) / (layers[0] - layers[1])

        def on(here: int, there: int) -> int:
            return round(here + reach * (here - there))

        held = {who: (one, less.held.get(who, Held())) for who, one in self.held.items()}
        return Footprint(
            {name: on(size, less.weights.get(name, 0)) for name, size in self.weights.items()},
            on(self.optimizer, less.optimizer),
            {
                who: Held(on(one.gradients, other.gradients), on(one.activations, other.activations))
                for who, (one, other) in held.items()
            },
            {name: on(count, less.flops.get(name, 0)) for name, count in self.flops.items()},
            self.blocks,
        )


class Tally(TorchDispatchMode):
    """Counts what is held and what is computed inside `with`.

    modules: those in memory, by name.   learners: theirs, whose optimisers have made their first step.
    """

    def __init__(self, modules: Mapping[str, nn.Module], learners: Sequence[Learner[Any]] = ()) -> None:
        super().__init__()
        self.modules = modules
        self.flops: Counter[str] = Counter()
        self.held: dict[str, Held] = {}
        self._roles: dict[nn.Module, str] = {}
        self._inside: list[tuple[str, int]] = []
        self._spans: list[tuple[int, int, str]] = []
        self._hooks: list[RemovableHandle] = []
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._now = 0
        self._tops: dict[str, int] = {}
        self._parameters = list({id(p): p for module in modules.values() for p in module.parameters()}.values())
        self.weights = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            for part in module.modules():
                self._roles.setdefault(part, name)
            self.weights[name] = sum(self._hold(tensor) for tensor in (*module.parameters(), *module.buffers()))
        kept = [tensor for learner in learners for tensor in _kept_by(learner)]
        self.optimizer = sum(self._hold(tensor) for tensor in kept)
        self._fixed = self._now

    def __enter__(self) -> Tally:
        self._hooks = [
            register_module_forward_pre_hook(self._goes_in),
            register_module_forward_hook(self._comes_out, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        count = _FORMULAS.get(func._overloadpacket)
        who = self._who()
        if count is not None:
            self.flops[who] += count(*args, **(kwargs or {}), out_val=found)
        if self._now > 1.002 * self._tops.get(who, 0):
            self._tops[who], self.held[who] = self._now, self._split()
        return found

    def footprint(self) -> Footprint:
        """What was found so far."""
        blocks: dict[str, int] = {
            name: max(sum(p.nbytes for p in block.parameters()) for block in module.shard_blocks()[:-1])
            for name, module in self.modules.items()
            if isinstance(module, CausalWan)
        }
        return Footprint(dict(self.weights), self.optimizer, dict(self.held), dict(self.flops), blocks)

    def _goes_in(self, module: nn.Module, args: Any) -> None:
        if module in self._roles:
            self._inside.append((self._roles[module], _next_node()))

    def _comes_out(self, module: nn.Module, args: Any, found: Any) -> None:
        if module in self._roles:
            who, first = self._inside.pop()
            if not self._inside:
                self._spans.append((first, _next_node(), who))

    def _who(self) -> str:
        """The outermost of the named modules that are running; in a backward pass the one that made the node."""
        if self._inside:
            return self._inside[0][0]
        node = torch._C._current_autograd_node()
        if node is None or not self._spans:
            return OTHER
        number = node._sequence_nr()
        place = bisect_right(self._spans, number, key=lambda span: span[0]) - 1
        first, end, who = self._spans[place]
        return who if place >= 0 and first <= number < end else OTHER

    def _hold(self, tensor: Tensor) -> int:
        """Bytes that a tensor's storage adds, once."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return 0
        size = storage.nbytes()
        self._known[storage] = size
        self._now += size
        weakref.finalize(storage, self._release, size)
        return size

    def _release(self, size: int) -> None:
        self._now -= size

    def _split(self) -> Held:
        gradients = sum(p.grad.nbytes for p in self._parameters if p.grad is not None)
        return Held(gradients, max(0, self._now - self._fixed - gradients))


def _kept_by(learner: Learner[Any]) -> Iterator[Tensor]:
    """What a learner holds from one update to the next."""
    for optimizer in learner.optimizers.values():
        for group in optimizer.param_groups:
            yield from group["params"]
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
    yield from learner.ema


def forecast(recipe: Recipe, stack: Stack, adapter: AdapterConfig | None = None, recompute: bool = False) -> Footprint:
    """Of an update of a recipe on a stack, whose parts may lie on the meta device, or of an adapter over its student.

    What lies in memory is what the trainer asks the stack for; optimisers have their states already.
    """
    for table in _TABLES:
        table.cache_clear()  # what they hold may not come in here, nor out again
    try:
        return _forecast(recipe, stack, adapter, recompute)
    finally:
        for table in _TABLES:
            table.cache_clear()


def _forecast(recipe: Recipe, stack: Stack, adapter: AdapterConfig | None, recompute: bool) -> Footprint:
    pretence = Pretence()
    parts = {name: cache(partial(pretence.make, name, make)) for name, make in stack.parts.items()}
    stack = replace(stack, parts=parts)
    stack.generator  # noqa: B018 - a student has it in memory beside its copy
    with pretence:
        student = stack.student(adapter)
        if recompute:
            student.model.transformer.enable_gradient_checkpointing()
        trainer = recipe.trainer(stack, student)
        learners, modules = list[Learner[Any]](), dict[str, nn.Module](student=student.model)
        for name, found in _inside(trainer):
            if isinstance(found, Learner):
                learners.append(found)
            module = found.module if isinstance(found, Learner) else found
            if not any(module is other for other in modules.values()):
                modules[name if name not in modules else f"{name} {len(modules)}"] = module
        modules |= {
            name: module
            for name, module in pretence.made.items()
            if not any(module is inner for other in modules.values() for inner in other.modules())
        }
        for learner in learners:
            for optimizer in learner.optimizers.values():
                _give_states(optimizer)
        with Tally(modules, learners) as tally:
            trainer.update()
    return tally.footprint()


def _inside(trainer: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Learners and modules that a trainer holds, and what they are called there."""
    if isinstance(trainer, (Learner, nn.Module)):
        yield name, trainer
    elif isinstance(trainer, (list, tuple)) and depth < 4:
        for value in trainer:
            yield from _inside(value, name, depth + 1)
    elif hasattr(trainer, "__dict__") and depth < 4 and not isinstance(trainer, Stack):
        for own, value in vars(trainer).items():
            yield from _inside(value, own, depth + 1)


def _next_node() -> int:
    """Of autograd, which counts them."""
    return int(torch._C._autograd._get_sequence_nr())


def _give_states(optimizer: torch.optim.Optimizer) -> None:
    """What an optimiser has after its first step."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _forward(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


ATTENTION_FLOPS: Any = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""Attention on a CPU, which torch's own counter leaves out: a custom_mapping of FlopCounterMode."""
_FORMULAS = {**flop_registry, **{kernel: shape_wrapper(formula) for kernel, formula in ATTENTION_FLOPS.items()}}
