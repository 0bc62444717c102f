import pytest
import torch

from reelgym.envs.worlds.grammar import GRAMMARS, chunk_clauses
from reelgym.experiments.evaluate import EvalConfig, evaluate, texts_of
from reelgym.experiments.systems import GroundTruth, Reconstruction, Student, Teacher, encode_clauses
from reelgym.models.generator import Generator, stream
from reelgym.models.prompts import WordEncoder
from reelgym.models.sampler import TeacherSampling
from reelgym.models.streaming import StreamingGenerator
from reelgym.models.wan import CausalWan
from reelgym.noise import normal, stream_keys

EXAM = EvalConfig(prompts=3, clips=2, long_prompts=2, batch=4)


class HalfSize(torch.nn.Module):
    """A codec without training: 8x8 means and back."""

    def encode(self, video):
        return torch.nn.functional.avg_pool2d(video.flatten(0, 1), 4).unflatten(0, video.shape[:2])

    def decode(self, latents, clamp=None):
        return latents.clamp(0, 1).repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.fixture(scope="module")
def encoder():
    return WordEncoder(GRAMMARS["plain"].vocabulary(), 16)


@pytest.fixture(scope="module")
def model(encoder):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24, "num_layers": 1, "freq_dim": 16}
    channels = {"in_channels": 3, "out_channels": 3, "text_dim": encoder.dim, "patch_size": (1, 2, 2)}
    return CausalWan(WanTransformer3DModel(**sizes, **channels), frames_per_chunk=3, text_len=16).eval()


@pytest.fixture(scope="module")
def student(model, encoder):
    return Student(StreamingGenerator(Generator(model, (1.0, 0.5), (3, 8, 8), 3), HalfSize(), encoder, 8.0, (16, 16)))


def test_the_world_passes_and_a_coarse_codec_does_not():
    truth = evaluate(GroundTruth(3), EXAM, seed=0)
    coarse = evaluate(Reconstruction(HalfSize(), GroundTruth(3)), EXAM, seed=0)
    assert truth.scores["total"].mean() > 0.97 and truth.late.mean() > 0.95
    assert coarse.scores["total"].mean() < truth.scores["total"].mean() - 0.1
    assert truth.video.shape == (3, 2, 12, 3, 32, 32) and truth.long_video.shape == (2, 48, 3, 32, 32)
    assert {len(value) for value in truth.scores.values()} == {3} and len(truth.drift) == 2
    assert (truth.diversity > 0.05).all()


def test_longer_streams_are_judged_beside_the_long_ones():
    found = evaluate(GroundTruth(3), EvalConfig(prompts=2, clips=2, long_prompts=1, longer=6), seed=0)
    assert {times: (len(one.tail), len(one.drift)) for times, one in found.further.items()} == {1: (4, 4), 6: (1, 1)}
    assert min(float(one.tail.min()) for one in found.further.values()) > 0.9 and found.late.shape == (1,)


def test_rows_do_not_depend_on_their_batch(student):
    clauses = [chunk_clauses(script, 4) for script in EXAM.scripts()[:2]]
    keys = stream_keys(3, 2)
    for system in (GroundTruth(3), student):
        together = system(clauses, keys)
        alone = torch.cat([system(clauses[i : i + 1], keys[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_seeds_change_the_noise_and_not_the_prompts(student):
    exam = EvalConfig(prompts=2, clips=2, long_prompts=0)
    first, again, other = (evaluate(student, exam, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.video, again.video) and not torch.equal(first.video, other.video)
    assert first.late.numel() == 0 and first.fps > 0


def test_the_student_streams_with_the_prompt_of_each_chunk(student, encoder):
    script = EXAM.long_scripts()[0]
    clauses = [chunk_clauses(script, 16)]
    keys = stream_keys(0, 1)
    embeds = encode_clauses(encoder, clauses)
    assert embeds.shape[:2] == (1, 16)
    assert torch.equal(embeds[0, 5], encoder.encode([str(script[1])])[0])
    expected = student.pipeline.codec.decode(stream(student.pipeline.generator, embeds, keys))
    assert torch.equal(student(clauses, keys), expected)


def test_the_teacher_starts_from_the_student_s_noise(student):
    calls = []

    class Watched(torch.nn.Module):
        frames_per_chunk = 3

        def forward(self, x, sigma, embeds):
            calls.append(x)
            return torch.zeros_like(x)

    teacher = Teacher(Watched(), student.pipeline, TeacherSampling(steps=2, guidance=1.0, shift=1.0))
    script = EXAM.long_scripts()[0]
    keys = stream_keys(1, 1)
    video = teacher([script], keys)
    assert video.shape == (1, 12, 3, 32, 32)
    assert torch.equal(calls[0][:, 3:6], normal(keys, 1, 0, (3, 3, 8, 8)))


def test_exams_of_different_splits_share_no_script():
    scripts = {split: set(texts_of(EvalConfig(prompts=20, split=split).scripts())) for split in ("validation", "test")}
    assert not scripts["validation"] & scripts["test"]
    assert texts_of(EvalConfig(prompts=5).scripts()) == texts_of(EvalConfig(prompts=20).scripts())[:5]
