"""Videos that go on for as long as one asks: a causal generator, its codec and its text encoder, with one face.

B streams; video is [B, F, 3, H, W] in [0, 1], latents [B, f, C, h, w].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ..noise import stream_keys
from .cache import KVCache
from .codec import DecodeState
from .generator import StreamState, generate_chunk, update_cache
from .stream_files import StreamingParts, load, save


@dataclass(frozen=True)
class StreamingGenerator(StreamingParts):
    """Generates video chunk after chunk, at a cost per chunk that does not grow.

    Example:
        >>> generator = StreamingGenerator.from_pretrained("tiny")
        >>> stream = generator.open("a red circle moves left", seed=0)
        >>> first = next(stream)  # [1, 3, 3, 32, 32]
        >>> stream.prompt = "a blue square moves up"
        >>> second = next(stream)
    """

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Load from a folder or a hub id; options and errors are those of `stream_files.load`."""
        return cls.of(load(source, **options))

    @classmethod
    def of(cls, parts: StreamingParts) -> Self:
        """From its parts."""
        return cls(parts.generator, parts.codec, parts.encoder, parts.fps, parts.size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` reads, all of it or nothing: `stream_files.save`."""
        save(self, folder)

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.generator.model.parameters()).device

    def compile(self, mode: str | None = None, *, dynamic: bool | None = None) -> None:
        """Compile the transformer in place with torch.compile; "reduce-overhead" records CUDA graphs on a GPU.

        While the window fills, lengths change and some calls compile again; `open` a stream and run it until the window
        is full before anything is timed.
        """
        self.generator.model.transformer.compile(mode=mode, dynamic=dynamic)

    def open(self, prompts: str | Sequence[str], seed: int | Sequence[int] = 0, start: Tensor | None = None) -> Stream:
        """Begin a stream, or a batch of them with a prompt each.

        Args:
            prompts: one prompt, or one for each of B streams.
            seed: a number, from which each stream's noise follows, or a number for each of them. A stream with a seed
                of its own is the same alone and in any batch.
            start: a picture [3, H, W] or a clip [F, 3, H, W] in [0, 1] that every stream goes on from, or a clip for
                each [B, F, 3, H, W]. It is read into the cache; the stream yields what comes after it.

        Raises:
            ValueError: an empty prompt, or one that the encoder refuses; as many seeds as there are not prompts; a
                picture or clip of the wrong size, length or range.
        """
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not texts:
            raise ValueError("no prompt: give one for each stream")
        if isinstance(seed, int):
            keys = stream_keys(seed, len(texts), self.device)
        elif len(seed) == len(texts):
            keys = torch.cat([stream_keys(one, 1, self.device) for one in seed])
        else:
            raise ValueError(f"{len(seed)} seeds for {len(texts)} prompts: give one for each, or one for all")
        single = isinstance(prompts, str)
        stream = Stream(self, texts, self.encode(texts), StreamState.start(keys), self.codec.open(), single=single)
        if start is not None:
            stream.read(start)
        return stream

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Prompts [B] to embeddings [B, L, D]; a text that occurs several times is encoded once. ValueError for an
        empty one."""
        if empty := [place for place, text in enumerate(texts) if not text.strip()]:
            raise ValueError(
                f"prompt {empty[0]} is empty: say what to show" if len(texts) > 1 else "the prompt is empty"
            )
        distinct = list(dict.fromkeys(texts))
        with torch.no_grad():
            embeds = self.encoder.encode(distinct).to(self.device)
        return embeds[torch.tensor([distinct.index(text) for text in texts], device=self.device)]

    def restore(self, folder: str | Path) -> Stream:
        """The stream that `Stream.save` wrote, to go on with as if it had never stopped.

        Raises CheckpointError for a damaged folder and for a stream of another generator.
        """
        tensors, meta = load_checkpoint(folder)
        if meta.get("kind") != "stream":
            raise CheckpointError(f"{folder}: a checkpoint, but not one of a stream")
        if meta["generator"] != self._fingerprint():
            raise CheckpointError(
                f"{folder}: a stream of other weights or another cache policy; load those it began with"
            )
        here = {group: {name: t.to(self.device) for name, t in named.items()} for group, named in tensors.items()}
        state = StreamState(_unpack_cache(here, meta["cache"]), meta["chunk"], here["stream"]["keys"])
        state = replace(state, prompt=here["stream"].get("prompt"))
        decode = self.codec.open().unpack(here["codec"], meta["codec"])
        texts = tuple(meta["texts"])
        return Stream(self, texts, self.encode(texts), state, decode, single=meta["single"], frames=meta["frames"])

    def _fingerprint(self) -> dict[str, Any]:
        """What tells this generator from others."""
        weights = hashlib.sha256()
        for name, tensor in self.generator.model.transformer.state_dict().items():
            weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            weights.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
        rest = asdict(self.generator.model.cache_config), self.generator.sigmas, self.generator.latent_shape
        return {"weights": weights.hexdigest(), "rest": repr(rest), "chunk": self.generator.frames_per_chunk}


class Stream(Iterator[Tensor]):
    """B videos in the making: every `next` is the next chunk of all of them, decoded.

    frames: video frames that came out so far. It never ends by itself; nothing that it holds grows once the cache's
    window is full.
    """

    def __init__(
        self,
        parts: StreamingGenerator,
        texts: tuple[str, ...],
        embeds: Tensor,
        state: StreamState,
        decode: Any,
        *,
        single: bool,
        frames: int = 0,
    ) -> None:
        self.parts, self.state, self._decode, self._single = parts, state, decode, single
        self.frames, self._texts, self._embeds = frames, texts, embeds

    @torch.no_grad()
    def __next__(self) -> Tensor:
        """The next frames [B, F, 3, H, W] in [0, 1]."""
        x0, _, self.state = generate_chunk(self.parts.generator, self.state, self._embeds)
        video, self._decode = self.parts.codec.decode_stream(x0, self._decode)
        self.frames += video.shape[1]
        return video

    @property
    def prompt(self) -> str | tuple[str, ...]:
        """What the next chunk shows; a tuple where there are several streams. Set it at any time: one text for all, or
        one for each."""
        return self._texts[0] if self._single else self._texts

    @prompt.setter
    def prompt(self, prompt: str | Sequence[str]) -> None:
        texts = (prompt,) * len(self._texts) if isinstance(prompt, str) else tuple(prompt)
        if len(texts) != len(self._texts):
            raise ValueError(f"{len(texts)} prompts for {len(self._texts)} streams: give one for each, or one for all")
        self._texts, self._embeds = texts, self.parts.encode(texts)

    @torch.no_grad()
    def read(self, video: Tensor) -> None:
        """Go on from a picture [3, H, W], a clip [F, 3, H, W], or a clip each [B, F, 3, H, W], values in [0, 1], as if
        the streams had made it under their present prompts; ValueError where it does not fit."""
        latents = self.parts.codec.encode(self._fitting(video))
        odd = latents.shape[1] % self.parts.generator.frames_per_chunk
        whole = latents[:, odd:].split(self.parts.generator.frames_per_chunk, 1)
        for chunk in ((latents[:, :odd],) if odd else ()) + (whole if latents.shape[1] > odd else ()):
            self.state = update_cache(self.parts.generator, self.state, chunk, self._embeds)
            _, self._decode = self.parts.codec.decode_stream(chunk, self._decode)

    def take(self, rows: Sequence[int] | Tensor) -> Stream:
        """The streams at rows, in that order, each to go on by itself; a row that occurs twice is a fork.

        Forks go on alike until a prompt tells them apart; this stream is left as it is.
        """
        index = torch.as_tensor(rows, dtype=torch.long, device=self.state.keys.device)
        texts = tuple(self._texts[row] for row in index.tolist())
        single = self._single and len(texts) == 1
        state, decode, embeds = self.state.take(index), self._decode.take(index), self._embeds[index]
        return Stream(self.parts, texts, embeds, state, decode, single=single, frames=self.frames)

    def save(self, folder: str | Path) -> None:
        """Write all that `StreamingGenerator.restore` needs to go on, whole or not at all; safetensors and JSON."""
        decode: DecodeState = self._decode
        codec, codec_meta = decode.pack()
        named = {"keys": self.state.keys}
        if self.state.prompt is not None:
            named["prompt"] = self.state.prompt
        tensors, cache = _pack_cache(self.state.cache)
        meta = {
            "kind": "stream",
            "generator": self.parts._fingerprint(),
            "texts": list(self._texts),
            "single": self._single,
            "chunk": self.state.chunk,
            "frames": self.frames,
            "cache": cache,
            "codec": codec_meta,
        }
        save_checkpoint(folder, {"stream": named, "codec": codec, **tensors}, meta)

    def _fitting(self, video: Tensor) -> Tensor:
        """video as [B, F, 3, H, W] on the device; ValueError where it does not fit."""
        clip = video[None] if video.ndim == 3 else video
        clip = clip[None] if clip.ndim == 4 else clip
        h, w = self.parts.size
        if clip.ndim != 5 or clip.shape[2] != 3 or clip.shape[0] not in (1, len(self._texts)):
            raise ValueError(
                f"a start is a picture [3, H, W], a clip [F, 3, H, W] or {len(self._texts)} clips [B, F, 3, H, W], "
                f"not {list(video.shape)}"
            )
        if clip.shape[-2:] != (h, w):
            raise ValueError(
                f"the start is {clip.shape[-1]}x{clip.shape[-2]} pixels, this generator makes {w}x{h}: resize it"
            )
        if not (clip.is_floating_point() and bool(((clip >= 0) & (clip <= 1)).all())):
            raise ValueError("pixels of the start must be floats in [0, 1]: divide bytes by 255")
        return clip.expand(len(self._texts), -1, -1, -1, -1).to(self.parts.device)


def _pack_cache(cache: KVCache | None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any] | None]:
    if cache is None:
        return {}, None
    name: Callable[[int], str] = str
    keys, values = ({name(layer): tensor for layer, tensor in enumerate(part)} for part in (cache.keys, cache.values))
    meta = {"frames": list(cache.frames), "next_frame": cache.next_frame}
    return {"keys": keys, "values": values, "latents": {"latents": cache.latents}}, meta


def _unpack_cache(tensors: dict[str, dict[str, Tensor]], meta: dict[str, Any] | None) -> KVCache | None:
    if meta is None:
        return None
    keys, values = (
        tuple(tensors[part][str(layer)] for layer in range(len(tensors[part]))) for part in ("keys", "values")
    )
    return KVCache(keys, values, tuple(meta["frames"]), meta["next_frame"], tensors["latents"]["latents"])
