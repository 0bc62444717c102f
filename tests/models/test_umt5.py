"""The text encoder beside diffusers' own pipeline."""

import sys

import pytest
import torch
from diffusers import WanPipeline

from reelgym.models.umt5 import UMT5TextEncoder

TEXTS = ["a red circle moves left", "", "a  blue &amp;amp; red\n square "]


@pytest.fixture(scope="module")
def encoder(wan_folder):
    return UMT5TextEncoder.from_pretrained(wan_folder, text_len=12)


def test_embeddings_are_those_of_the_pipeline(encoder, wan_folder):
    pipeline = WanPipeline.from_pretrained(wan_folder)
    expected = pipeline._get_t5_prompt_embeds(TEXTS, max_sequence_length=12)
    found = encoder.encode(TEXTS)
    assert found.shape == (3, 12, 16) == (len(TEXTS), encoder.text_len, encoder.dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)
    assert encoder.encode([]).shape == (0, 12, 16)
    assert not found[1, 1:].any() and found[0, 5].any() and not found[0, 6:].any()
    torch.testing.assert_close(encoder.encode(TEXTS[2:])[0], found[2], atol=1e-5, rtol=0)


def test_prompts_that_do_not_fit_are_refused(encoder):
    assert encoder.encode(["a red circle moves left ; then a blue square"]).isfinite().all()
    with pytest.raises(ValueError, match="prompt of 13 tokens is longer than 12: shorten 'a a"):
        encoder.encode(["a red", "a " * 12])
    with pytest.raises(TypeError, match="wrap the one prompt"):
        encoder.encode("a red circle")


def test_what_is_saved_is_loaded(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = UMT5TextEncoder.from_pretrained(tmp_path, text_len=12)
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_type_and_device_are_chosen(encoder, wan_folder):
    half = UMT5TextEncoder.from_pretrained(wan_folder, 12, torch.bfloat16, "cpu")
    assert half.encoder.dtype == torch.bfloat16
    found = half.encode(TEXTS)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    assert 0 < (found - encoder.encode(TEXTS)).abs().max() < 0.2
    nowhere = UMT5TextEncoder.from_pretrained(wan_folder, 12, device="meta")
    assert nowhere.encoder.device.type == "meta"


def test_transformers_is_asked_for(wan_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'reelgym\[wan\]'"):
        UMT5TextEncoder.from_pretrained(wan_folder)


def test_what_is_missing_is_named(encoder, tmp_path):
    with pytest.raises(ValueError, match="has no text_encoder/"):
        UMT5TextEncoder.from_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    (tmp_path / "text_encoder" / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot be read") as caught:
        UMT5TextEncoder.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
