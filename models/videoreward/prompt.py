"""VideoReward's prompt: the wording comes from the user's VideoAlign checkout, the chat format from the tokenizer."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REWARD_TOKENS: tuple[str, ...] = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
VIDEO_TOKEN = "<|video_pad|>"
PLACEHOLDER = "{text_prompt}"
CONSTANT = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
HINT = (
    "pass template= (--prompt-template): your checkout of github.com/KwaiVGI/VideoAlign, whose prompt_template.py is "
    f"read, or a text file with {PLACEHOLDER} in it"
)


def read_template(path: str | Path | None) -> str:
    """The wording, from a text file, a prompt_template.py, or a folder with one (read, never executed).

    CheckpointError where it is missing (None: not given), or does not hold VQ's and MQ's tokens, the placeholder and
    TA's token once each and in this order.
    """
    if path is None:
        raise CheckpointError(f"template: not given; {HINT}")
    path = Path(path)
    source = path / "prompt_template.py" if path.is_dir() else path
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file; {HINT}")
    try:
        text = source.read_text(encoding="utf-8")
        text = _constant(text) if source.suffix == ".py" else text
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(f"{source}: no prompt template ({str(error).splitlines()[0]}); {HINT}") from error
    parts = (*REWARD_TOKENS[:2], PLACEHOLDER, REWARD_TOKENS[2])
    wrong = [part for part in parts if text.count(part) != 1]
    if wrong:
        raise CheckpointError(f"{source}: holds {wrong[0]} {text.count(wrong[0])} times, not once; {HINT}")
    if sorted(parts, key=text.index) != list(parts):
        raise CheckpointError(f"{source}: the order must be {', '.join(parts)}; {HINT}")
    return text


def _constant(source: str) -> str:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == CONSTANT for t in node.targets):
            value = ast.literal_eval(node.value)
            if isinstance(value, str):
                return value
    raise ValueError(f"it has no string {CONSTANT}")


def load_tokenizer(backbone: str | Path) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """The backbone's tokenizer (a folder or hub id) with the three reward tokens added, and their ids."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(backbone))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"backbone {backbone}: no tokenizer in it ({str(error).splitlines()[0]})") from error
    if not tokenizer.chat_template:
        raise CheckpointError(f"backbone {backbone}: its tokenizer has no chat template; pass Qwen2-VL-2B-Instruct")
    tokenizer.add_tokens(list(REWARD_TOKENS), special_tokens=True)
    return tokenizer, tuple(tokenizer.convert_tokens_to_ids(list(REWARD_TOKENS)))


@dataclass(frozen=True)
class ChatPrompt:
    """Token ids of one clip's conversation. template: with `{text_prompt}`. video_token: what stands for the video.
    reward_tokens: ids of VQ, MQ, TA."""

    tokenizer: Any
    template: str
    video_token: int
    reward_tokens: Sequence[int]

    def __call__(self, text: str, video_tokens: int) -> list[int]:
        """The ids for one prompt and a video of so many tokens, as published: the user's turn, and the reply begun.

        ValueError for a prompt that holds a token with a meaning of its own.
        """
        content = [{"type": "video", "video": ""}, {"type": "text", "text": self.template.replace(PLACEHOLDER, text)}]
        chat = [{"role": "user", "content": content}]
        written = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        special = (self.video_token, *self.reward_tokens)
        places = [place for place, token in enumerate(ids) if token in special]
        if [ids[place] for place in places] != list(special):
            names = ", ".join(self.tokenizer.convert_ids_to_tokens(list(special)))
            raise ValueError(f"prompt {text[:60]!r}: the conversation must hold {names} once each, in this order")
        return [*ids[: places[0]], *[self.video_token] * video_tokens, *ids[places[0] + 1 :]]
