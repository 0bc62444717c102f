"""Tensors that have shapes and no content, so that a network of any size runs at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_MAKES = {torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step}
_VERDICTS = {torch.ops.aten.all.default: True, torch.ops.aten.any.default: False}


class Pretence(TorchDispatchMode):
    """Tensors without content inside `with`; whole numbers that depend on none of them keep theirs, so that code may
    count with them. A number that is read from a tensor without content is 1; all of it is as wished, and none as
    feared: `all` is true and `any` false, and `nonzero` finds every row."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.made: dict[str, nn.Module] = {}
        self._copies: dict[int, Any] = {}

    def __enter__(self) -> Pretence:
        self._swap = torch.utils.swap_tensors
        torch.utils.swap_tensors = _moved  # refuses tensors that anybody refers to weakly, as pretended ones are
        setattr(FakeTensor, "__deepcopy__", _copied)  # noqa: B010 - torch's own gives a copy whose views have storages apart
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)
        torch.utils.swap_tensors = self._swap
        del FakeTensor.__deepcopy__

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = not any(isinstance(t, FakeTensor) or t.is_floating_point() or t.is_complex() for t in tensors)
        if known and (tensors or func in _MAKES or _is_whole(args, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten.nonzero.default and args[0].ndim == 1:
            with unset_fake_temporarily():
                return torch.arange(len(args[0]))[:, None]
        if func in _VERDICTS:
            with unset_fake_temporarily():
                return torch.tensor(_VERDICTS[func])
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else args[0].dtype is torch.bool or 1
        return func(*args, **kwargs)

    def make(self, name: str, make: Callable[[], Any]) -> Any:
        """A copy of a stack's part, without content; its module is kept in `made`."""
        with _disable_current_modes():
            part = copy.deepcopy(make(), self._copies)
        module = part if isinstance(part, nn.Module) else getattr(part, "model", None)
        if isinstance(module, nn.Module):
            self.made.setdefault(name, module)
            self.empty(module)
        return part

    def empty(self, module: nn.Module) -> None:
        """Take the content of a module's weights and buffers."""
        for part in module.modules():
            for place in (part._parameters, part._buffers):
                for name, tensor in place.items():
                    if tensor is not None and not isinstance(tensor, FakeTensor):
                        place[name] = self._like(tensor)

    def _like(self, tensor: Tensor) -> Any:
        if not (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta:
            return tensor
        with self.fake:
            hollow = torch.empty(tensor.shape, dtype=tensor.dtype)
        return nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow


def _moved(tensor: Tensor, other: Tensor) -> None:
    """As far as modules need it that are moved to another device or dtype."""
    tensor.data = other.data


def _copied(tensor: FakeTensor, memo: dict[int, Any]) -> Any:
    copied = tensor.detach().clone()
    memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    return memo[id(tensor)]


def _is_whole(args: Any, kwargs: Any) -> bool:
    """Whether a new tensor is to hold whole numbers or truths."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        return len(args) == 2 and isinstance(args[1], int)  # full
    return not dtype.is_floating_point and not dtype.is_complex
