"""From VideoReward's files to the parts of the module: sizes, tokens, and weights that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...checkpoint import CheckpointError
from .prompt import VIDEO_TOKEN, ChatPrompt, load_tokenizer, read_template
from .weights import (
    EMBEDDING,
    Settings,
    Weights,
    backbone_tensors,
    find_checkpoint,
    read_json,
    read_tensors,
)

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig, Qwen2VLModel


def read_config(folder: Path, backbone: str | Path | None) -> Qwen2VLConfig:
    """The backbone's sizes: `folder`/backbone.json, or config.json of the backbone, a folder or a hub id."""
    from transformers import Qwen2VLConfig

    own = folder / "backbone.json"
    if own.is_file():
        return Qwen2VLConfig(**read_json(own))
    if backbone is None:
        raise CheckpointError(f"{folder}: no backbone.json in it; pass backbone= (--backbone), a folder or hub id")
    if Path(backbone).is_dir():
        found = read_json(Path(backbone) / "config.json")
        if found.get("model_type") != "qwen2_vl":
            raise CheckpointError(f"backbone {backbone}: its model_type is {found.get('model_type')!r}, not 'qwen2_vl'")
        return Qwen2VLConfig(**found)
    try:
        config: Qwen2VLConfig = Qwen2VLConfig.from_pretrained(str(backbone))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"backbone {backbone}: no such folder, nor to be had from the hub ({reason})") from error
    return config


def read_chat(
    settings: Settings, config: Qwen2VLConfig, backbone: str | Path | None, template: str | Path | None
) -> tuple[ChatPrompt | None, tuple[int, ...]]:
    """How prompts become tokens (None without a template), and the ids of the reward tokens."""
    ids = settings.special_token_ids
    wording = None if template is None else read_template(template)
    if wording is None and ids is not None:
        return None, ids
    if backbone is None:
        raise CheckpointError("backbone: needed for the tokenizer; pass backbone= (--backbone), a folder or hub id")
    tokenizer, own = load_tokenizer(backbone)
    if ids is not None and own != ids:
        raise CheckpointError(f"backbone {backbone}: its tokenizer gives the reward tokens {own}, the checkpoint {ids}")
    if tokenizer.convert_tokens_to_ids(VIDEO_TOKEN) != config.video_token_id:
        raise CheckpointError(
            f"backbone {backbone}: its tokenizer does not write {VIDEO_TOKEN} as {config.video_token_id}; "
            "pass the complete folder of Qwen2-VL-2B-Instruct"
        )
    return None if wording is None else ChatPrompt(tokenizer, wording, config.video_token_id, own), own


def read_weights(
    folder: Path, step: int | None, backbone: str | Path | None, settings: Settings, vocabulary: int
) -> Weights:
    """The checkpoint's tensors; frozen ones that it leaves out come from the backbone's folder. vocabulary: how many
    tokens there are, and rows of the backbone's embedding are kept."""
    tensors, partial = read_tensors(find_checkpoint(folder, step))
    weights = Weights(tensors, settings.lora_scale)
    if partial:
        if backbone is None or not Path(backbone).is_dir():
            raise CheckpointError(
                f"{folder}: this checkpoint leaves out frozen weights; pass backbone= (--backbone), a folder with them"
            )
        frozen = backbone_tensors(Path(backbone))
        if EMBEDDING in frozen:
            frozen[EMBEDDING] = frozen[EMBEDDING][:vocabulary]
        weights.fill(frozen)
    rows = len(weights.dense.get(EMBEDDING, ()))
    if rows < vocabulary:
        weights.faults.append(f"the reward tokens go up to id {vocabulary - 1}, beyond the {rows} rows of {EMBEDDING}")
    return weights


def empty_backbone(config: Qwen2VLConfig) -> Qwen2VLModel:
    """The backbone without weights: parameters on the meta device, rotary frequencies in place."""
    from transformers import Qwen2VLModel

    with torch.device("meta"):
        model = Qwen2VLModel(config)
    model.visual.rotary_pos_emb = type(model.visual.rotary_pos_emb)(config.vision_config)
    model.language_model.rotary_emb = type(model.language_model.rotary_emb)(config.text_config)
    return model


def fill(model: nn.Module, weights: Weights, dtype: torch.dtype) -> None:
    """Put weights in dtype into a model whose backbone is empty, if all of them fit; the head stays in float32."""
    weights.check({name: parameter.shape for name, parameter in model.named_parameters()})
    merged = weights.merged(dtype)
    merged["head.weight"] = weights.dense["head.weight"].to(torch.promote_types(dtype, torch.float32))
    model.load_state_dict(merged, strict=False, assign=True)
