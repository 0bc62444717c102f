"""Sizes of video as people write them."""

import re


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of "WIDTHxHEIGHT"; ValueError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if found is None:
        raise ValueError(f"size {text!r}: write WIDTHxHEIGHT, as in 832x480")
    return int(found[2]), int(found[1])
