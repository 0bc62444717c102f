import pytest
import torch

from reelgym.models.prompts import PromptBank, UnknownWordError, WordEncoder

VOCAB = ["a", "red", "blue", "circle", "square", "moves", "left", ";", "then"]


def test_encode_is_one_hot_word_and_position_of_mean_square_one() -> None:
    encoder = WordEncoder(VOCAB, text_len=4)
    embeds = encoder.encode(["a Red circle", ""])
    assert embeds.shape == (2, 4, encoder.dim) and encoder.dim == len(VOCAB) + 4
    for place, word in enumerate(["a", "red", "circle"]):
        expected = torch.zeros(encoder.dim)
        expected[VOCAB.index(word)] = expected[len(VOCAB) + place] = (encoder.dim / 2) ** 0.5
        assert torch.equal(embeds[0, place], expected)
        assert embeds[0, place].square().mean().item() == pytest.approx(1)
    assert not embeds[0, 3].any() and not embeds[1].any()


def test_punctuation_stands_alone() -> None:
    assert WordEncoder(VOCAB).words("a red; then blue") == ["a", "red", ";", "then", "blue"]


def test_unknown_word_names_the_nearest() -> None:
    with pytest.raises(UnknownWordError, match="unknown word 'circel'.*circle"):
        WordEncoder(VOCAB).encode(["a red circel"])
    with pytest.raises(UnknownWordError, match="the words are: a, red"):
        WordEncoder(VOCAB).encode(["zzz"])


def test_other_clear_errors() -> None:
    with pytest.raises(ValueError, match="5 words is longer than 4"):
        WordEncoder(VOCAB, text_len=4).encode(["a a a a a"])
    with pytest.raises(TypeError, match="wrap the one prompt in a list"):
        WordEncoder(VOCAB).encode("a red circle")
    with pytest.raises(ValueError, match="a word twice"):
        WordEncoder(["a", "a"])


def test_bank_holds_the_null_prompt_first_and_each_text_once() -> None:
    encoder = WordEncoder(VOCAB)
    bank = PromptBank.build(encoder, ["a red circle", "a blue square", "a red circle"])
    assert bank.text == ("", "a red circle", "a blue square")
    index = bank.index(["a blue square", "", "a blue square"])
    assert index.tolist() == [2, 0, 2]
    batch = bank.batch(index)
    assert batch.text == ("a blue square", "", "a blue square")
    assert torch.equal(batch.embeds, encoder.encode(batch.text))
    assert batch.take(torch.tensor([1])).text == ("",)
    with pytest.raises(ValueError, match="not in the bank"):
        bank.index(["a red square"])
