"""Tensors that are computed once and kept on disk, in safetensors shards that several processes may write at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import sha256_file, sha256_weights, write_json

if TYPE_CHECKING:
    from safetensors import safe_open

_DIGESTS = "digests.json"
_OPEN = 64
"""Shards that are kept open."""


class TensorCacheError(ValueError):
    """A cache cannot be written, or lacks what is asked of it; the message is one line."""


def cache_key(*said: Any) -> str:
    """One name for all that decides a tensor: strings, numbers, lists and None."""
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class TensorCache:
    """Tensors by `cache_key` in a folder; what is there is never changed.

    Nothing is locked. A shard is written under another name and then renamed, so that a reader sees all of it or
    nothing; who computes what another process has written meanwhile has lost that time and nothing else. `put` gathers
    tensors, and `with cache:` or `flush` writes what is left, also when the block is left by an error.

    folder: made when something is written.   shard_bytes, shard_seconds: a shard is written when it has grown or waited
    so much; a kill loses no more.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = 2**26, shard_seconds: float = 30.0) -> None:
        self.folder, self.shard_bytes, self.shard_seconds = Path(folder), shard_bytes, shard_seconds
        self._places: dict[str, str] = {}
        self._seen: set[str] = set()
        self._open: dict[str, safe_open] = {}
        self._waiting: dict[str, Tensor] = {}
        self._since, self._bytes = time.monotonic(), 0
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._waiting

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._waiting})

    def refresh(self) -> None:
        """See what other processes have written meanwhile; a shard that is damaged counts as not there."""
        names = {path.name for path in self.folder.glob("*.safetensors") if not path.name.startswith(".")}
        for name in sorted(names - self._seen):
            self._seen.add(name)
            for key in _keys(self.folder / name):
                self._places.setdefault(key, name)

    def get(self, key: str) -> Tensor:
        """The tensor, on the CPU; TensorCacheError where there is none."""
        if key in self._waiting:
            return self._waiting[key]
        if key not in self._places:
            raise TensorCacheError(f"{self.folder}: the cache lacks {key}")
        return self._shard(self._places[key]).get_tensor(key)

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor; TensorCacheError where the disk is full, and all that was written before is kept."""
        if not self._waiting:
            self._since, self._bytes = time.monotonic(), 0
        self._waiting[key] = tensor.detach().to("cpu", copy=True).contiguous()
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= self.shard_bytes or time.monotonic() - self._since >= self.shard_seconds:
            self.flush()

    def put_note(self, key: str, text: str) -> None:
        """Keep a text, such as why there is no tensor."""
        self.put(key, torch.tensor(list(text.encode()), dtype=torch.uint8))

    def note(self, key: str) -> str:
        """What `put_note` kept."""
        return bytes(self.get(key).tolist()).decode()

    def flush(self) -> None:
        """Write what `put` gathered."""
        from safetensors.torch import save

        if not self._waiting:
            return
        name = f"{uuid.uuid4().hex}.safetensors"
        aside = self.folder / f".{socket.gethostname()}.{os.getpid()}.{name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with aside.open("wb") as file:
                file.write(save(self._waiting))
                file.flush()
                os.fsync(file.fileno())
            os.rename(aside, self.folder / name)
        except OSError as error:
            aside.unlink(missing_ok=True)
            lost = len(self._waiting)
            self._waiting = {}
            raise TensorCacheError(
                f"{self.folder}: {error.strerror or error}; {len(self._places)} tensors are kept in this cache, {lost} "
                "are not: make room and start again, and it goes on from there"
            ) from error
        self._seen.add(name)
        self._places.update(dict.fromkeys(self._waiting, name))
        self._waiting = {}

    def __enter__(self) -> TensorCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def _shard(self, name: str) -> safe_open:
        from safetensors import safe_open

        if name not in self._open:
            if len(self._open) >= _OPEN:
                del self._open[next(iter(self._open))]
            self._open[name] = safe_open(self.folder / name, "pt")
        return self._open[name]

    def _sweep(self) -> None:
        """Away with what killed processes of this machine left half-written."""
        for path in self.folder.glob(f".{socket.gethostname()}.*.tmp"):
            found = re.match(rf"\.{re.escape(socket.gethostname())}\.(\d+)\.", path.name)
            if found and not _runs(int(found[1])):
                path.unlink(missing_ok=True)


class FileDigests:
    """SHA-256 of files, noted down beside a cache: a file of the same size and time of change is not read again."""

    def __init__(self, folder: str | Path) -> None:
        self.place, self._new = Path(folder) / _DIGESTS, False
        self._known: dict[str, list[Any]] = self._noted()

    def of(self, path: str | Path) -> str:
        """Of a file's bytes. OSError where it cannot be read."""
        name, stat = str(Path(path).resolve()), Path(path).stat()
        when = [stat.st_size, stat.st_mtime_ns]
        if self._known.get(name, [None])[:2] != when:
            self._known[name], self._new = [*when, sha256_file(path)], True
        return str(self._known[name][2])

    def of_all(self, files: Sequence[Path]) -> str:
        """Of several files, by name."""
        return cache_key(*([path.name, self.of(path)] for path in files))

    def save(self) -> None:
        """Note down what is new; a folder that cannot be written is none the worse."""
        if self._new:
            try:
                self.place.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.place, self._noted() | self._known)
                self._new = False
            except OSError:
                pass

    def _noted(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self.place.read_text(encoding="utf-8"))
            return {name: noted for name, noted in found.items() if len(noted) == 3}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def digest_of(part: Any) -> str:
    """What tells a live codec or encoder from others: its weights, or its words. ValueError for what has neither."""
    if isinstance(getattr(part, "vocab", None), tuple):
        return cache_key(type(part).__name__, part.vocab, part.text_len)
    module = part if isinstance(part, torch.nn.Module) else getattr(part, "encoder", None)
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"a {type(part).__name__} has no weights that tell it from others: name its folder")
    return cache_key(type(part).__name__, sha256_weights(module.state_dict()), getattr(part, "text_len", None))


def _keys(shard: Path) -> Iterable[str]:
    """Names of a shard's tensors; none where it is damaged, or gone meanwhile."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return []


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
