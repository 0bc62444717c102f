"""LoRA (2106.09685) through PEFT: adapters on linear layers, and copies that share what is under them."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .wan import CausalWan

Copied = TypeVar("Copied", bound=nn.Module)
ADAPTER = "default"
"""PEFT's name of the adapter that trains; others, which were loaded, are frozen with the base."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Targets of diffusers' scripts: the projections of self-attention and cross-attention."""
_OWN = re.compile(rf"\.lora_[AB]\.{ADAPTER}\.")


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter that is to be trained in place of a transformer's own weights."""

    rank: int
    """Of the matrices that are added."""
    alpha: float | None = None
    """They are added times alpha / rank; None: as they are."""
    targets: tuple[str, ...] = ATTENTION
    """Ends of the names of the linear layers that get one."""

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0) or not self.targets:
            raise ValueError(f"a LoRA has a rank of 1 or more, an alpha above 0 and targets: {self}")


def add_adapter(model: CausalWan, config: AdapterConfig, seed: int = 0) -> CausalWan:
    """Freeze a model and add an adapter in float32 that alone trains and as yet changes nothing; in place.

    Its first matrix is drawn from `seed`. ValueError for targets that are no linear layers of the transformer.
    """
    from peft import LoraConfig

    transformer = model.transformer
    layers = {name: layer for name, layer in transformer.named_modules() if _is_linear(layer)}
    for target in config.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            ends = sorted({re.sub(r"^blocks\.\d+\.", "", name) for name in layers})
            raise ValueError(f"no linear layer of the transformer ends in {target}; they end in {', '.join(ends)}")
    alpha: Any = config.rank if config.alpha is None else config.alpha
    before = list(getattr(transformer, "peft_config", {}))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        torch.manual_seed(seed)
        transformer.add_adapter(
            LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=list(config.targets)), ADAPTER
        )
    transformer.set_adapter([*before, ADAPTER])
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(bool(_OWN.search(name)))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def adapter_of(model: nn.Module) -> AdapterConfig | None:
    """The adapter that trains in a model, where there is one."""
    known = getattr(getattr(model, "transformer", None), "peft_config", {})
    if ADAPTER not in known:
        return None
    said = known[ADAPTER]
    return AdapterConfig(said.r, said.lora_alpha, tuple(sorted(said.target_modules)))


def twin(model: Copied) -> Copied:
    """A copy. Under an adapter that trains it shares the base in memory, and the adapter alone is copied."""
    shared = {id(p): p for name, p in model.named_parameters() if not _OWN.search(name)} if adapter_of(model) else {}
    return copy.deepcopy(model, shared)


def frozen_copy(model: Copied) -> Copied:
    """The model as it is now, without gradient: a `twin`, which with a fresh adapter is the base to the bit."""
    return twin(model).requires_grad_(False)


def trainable_copy(model: CausalWan, adapter: AdapterConfig | None = None, seed: int = 0) -> CausalWan:
    """A copy to be trained: all of it, with what was added to it merged, or an adapter over the same base in memory,
    which is then frozen."""
    if adapter is not None:
        shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        return add_adapter(shared, adapter, seed)
    return merged(copy.deepcopy(model)).requires_grad_(True)


def trainable_like(model: CausalWan, other: CausalWan, seed: int = 0) -> CausalWan:
    """A copy to be trained as another model is: all of it or such an adapter, its activations kept or made again."""
    made = trainable_copy(model, adapter_of(other), seed)
    if other.transformer.is_gradient_checkpointing:
        made.transformer.enable_gradient_checkpointing()
    return made


def plain_model(model: CausalWan) -> CausalWan:
    """The model itself, or where it has adapters a copy with these in its weights."""
    return trainable_copy(model) if hasattr(model.transformer, "peft_config") else model


def merged(model: CausalWan) -> CausalWan:
    """The model with its adapters added to its weights, in place."""
    if hasattr(model.transformer, "peft_config"):
        model.transformer.fuse_lora()
        model.transformer.unload_lora()
    return model


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, the tensors in use; of one with an adapter that trains, the adapter's alone."""
    state = module.state_dict()
    return {name: value for name, value in state.items() if _OWN.search(name)} or dict(state)


def load_own_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Inverse of `own_weights`; RuntimeError for those of another module or adapter."""
    own = own_weights(module)
    rest = {name: value for name, value in module.state_dict().items() if name not in own}
    module.load_state_dict({**rest, **weights})


def lora_words(model: CausalWan) -> str:
    """What was added to a model, in words; nothing where nothing was."""
    found = list[str]()
    for adapter in getattr(model.transformer, "peft_config", {}):
        layers: list[Any] = [layer for layer in model.modules() if adapter in getattr(layer, "lora_A", {})]
        ranks = sorted({layer.r[adapter] for layer in layers})
        found.append(f", LoRA of rank {' and '.join(map(str, ranks))} on {len(layers)} layers")
    return "".join(found)


def _is_linear(layer: nn.Module) -> bool:
    inside: Any = getattr(layer, "base_layer", layer)
    return isinstance(inside, nn.Linear)
