"""The exam's edge slices: the world passes them, and a generator sees the given chunk and nothing more of the truth."""

from dataclasses import dataclass, replace

import pytest
import torch

from reelgym.envs.worlds.slices import SLICES
from reelgym.experiments.evaluate import AXES, EvalConfig
from reelgym.experiments.rows import slice_rows
from reelgym.experiments.slices import examine_slices
from reelgym.experiments.systems import REFERENCES, GroundTruth, Reconstruction, Student
from reelgym.models.generator import Generator
from reelgym.models.prompts import WordEncoder
from reelgym.models.streaming import StreamingGenerator

EXAM = EvalConfig(slice_prompts=2, batch=8)


class HalfSize(torch.nn.Module):
    """A codec without training: 8x8 means and back."""

    def encode(self, video):
        return torch.nn.functional.avg_pool2d(video.flatten(0, 1), 4).unflatten(0, video.shape[:2])

    def decode(self, latents, clamp=None):
        return latents.clamp(0, 1).repeat_interleave(4, -1).repeat_interleave(4, -2)


@dataclass(frozen=True)
class Watched:
    """Remembers what it was asked and gives the truth back."""

    asked: list

    def continue_from(self, video, given, clauses, keys):
        self.asked.append((video, given, clauses, keys))
        return video


def test_the_truth_passes_and_a_coarse_codec_does_not():
    truth, coarse = (
        examine_slices(system, EXAM, 0) for system in (GroundTruth(3), Reconstruction(HalfSize(), GroundTruth(3)))
    )
    assert list(truth) == list(coarse) == list(SLICES)
    for name in SLICES:
        assert list(truth[name]) == list(AXES) and truth[name]["total"].shape == (2,)
        assert truth[name]["total"].mean() >= 0.98 > coarse[name]["total"].mean() + 0.1


def test_what_is_asked_is_heard_the_same_for_every_seed_and_in_batches():
    asked = [[], [], []]
    for found, seed in zip(asked, (0, 0, 1), strict=True):
        examine_slices(Watched(found), EXAM, seed)
    first, again, other = asked
    assert [len(video) for video, *_ in first] == [8, 8, 2] and first[-1][0].shape[1] == 48
    assert all(given == 3 for _, given, _, _ in first)
    words = {word for _, _, rows, _ in first for row in rows for clause in row for word in str(clause).split()}
    assert not words & {"light", "bar", "orbits", "sways", "zigzags", "bounces"}
    for ours, same, others in zip(first, again, other, strict=True):
        assert ours[2] == same[2] == others[2]
        assert torch.equal(ours[0], same[0]) and torch.equal(ours[3], same[3])
        assert not torch.equal(ours[0], others[0]) and not torch.equal(ours[3], others[3])


def test_what_is_given_does_not_count():
    class Spoils(Watched):
        def continue_from(self, video, given, clauses, keys):
            return torch.cat((video[:, :given] * 0.5 + 0.3, video[:, given:]), 1)

    honest, spoilt = (examine_slices(system, EXAM, 0)["cut"]["TA"] for system in (Watched([]), Spoils([])))
    torch.testing.assert_close(spoilt, honest)


def test_a_student_sees_the_given_chunk_alone():
    from diffusers import WanTransformer3DModel

    from reelgym.envs.worlds.grammar import GRAMMARS, parse
    from reelgym.models.wan import CausalWan

    torch.manual_seed(0)
    encoder = WordEncoder(GRAMMARS["plain"].vocabulary(), 16)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24, "num_layers": 1, "freq_dim": 16}
    channels = {"in_channels": 3, "out_channels": 3, "text_dim": encoder.dim, "patch_size": (1, 2, 2)}
    model = CausalWan(WanTransformer3DModel(**sizes, **channels), frames_per_chunk=3, text_len=16).eval()
    student = Student(
        StreamingGenerator(Generator(model, (1.0, 0.5), (3, 8, 8), 3), HalfSize(), encoder, 8.0, (16, 16))
    )
    rows, keys, video = [parse("a red circle rests") * 4], torch.tensor([5]), torch.rand(1, 12, 3, 32, 32)
    made = student.continue_from(video, 3, rows, keys)
    late = student.continue_from(torch.cat((video[:, :3], 1 - video[:, 3:]), 1), 3, rows, keys)
    early = student.continue_from(torch.cat((1 - video[:, :3], video[:, 3:]), 1), 3, rows, keys)
    assert made.shape == video.shape and torch.equal(made, late)
    assert torch.equal(
        made[:, :3], Reconstruction(HalfSize(), GroundTruth(3)).continue_from(video, 3, rows, keys)[:, :3]
    )
    assert not torch.allclose(made[:, 3:], early[:, 3:])


def test_none_where_none_is_asked_and_none_for_what_cannot_go_on():
    assert examine_slices(GroundTruth(3), replace(EXAM, slice_prompts=0), 0) == {}
    assert examine_slices(lambda clauses, keys: torch.zeros(1), EXAM, 0) == {}


def test_rows_by_hand():
    axes = dict.fromkeys(("VQ", "MQ", "TA", "physics"), [0.5, 0.7])
    results = [{"slices": {name: axes | {"total": total} for name in SLICES}} for total in ([0.2, 0.4], [0.4, 0.6])]
    rows = slice_rows("start", results)
    assert [row["slice"] for row in rows] == list(SLICES) and {row["kind"] for row in rows} == {"slice"}
    assert rows[0]["label"] == REFERENCES["start"] and rows[0]["seeds"] == rows[0]["prompts"] == 2
    assert rows[0]["total"] == pytest.approx(0.4) and rows[0]["low"] < 0.4 < rows[0]["high"]
    assert rows[0]["vq"] == pytest.approx(0.6)
    assert slice_rows("teacher", [{"scores": {}}]) == []
