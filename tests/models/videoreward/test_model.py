"""VideoReward: the public implementation's numbers, and scoring from pixels and prompts."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reelgym.models.codec import Grid
from reelgym.models.prompts import PromptBatch
from reelgym.models.videoreward import VideoReward
from reelgym.models.videoreward.pixels import to_patches
from reelgym.rewards.stream_reward import RewardSettings, StreamReward

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "videoreward"
AXES = ("VQ", "MQ", "TA")


@pytest.fixture(scope="module")
def trace():
    return load_file(GOLDEN / "trace.safetensors")


@pytest.fixture(scope="module")
def golden():
    return VideoReward.from_pretrained(GOLDEN)


def logits(model, trace, pixels):
    return model.logits(pixels, trace["video_grid_thw"], trace["input_ids"], trace["attention_mask"])


def worst_differences(model, trace, pixels):
    """Of the logits, and of the pixel gradients relative to their size."""
    pixels = pixels.clone().requires_grad_()
    found = logits(model, trace, pixels)
    yield float((found - trace["logits"]).detach().abs().max())
    for column, axis in enumerate(AXES):
        (gradient,) = torch.autograd.grad(found[:, column].sum(), pixels, retain_graph=True)
        wanted = trace[f"pixel_gradient_{axis}"]
        yield float((gradient - wanted).abs().max() / wanted.abs().max())


def frames_to_patches(model, trace):
    return [to_patches(trace[f"frames{clip}"].float() / 255, model.pixels) for clip in range(2)]


def test_logits_and_pixel_gradients_are_reproduced(golden, trace):
    assert max(worst_differences(golden, trace, trace["pixel_values_videos"])) < 1e-5


@pytest.mark.parametrize("rows", [[0], [1], [1, 0], [0, 1, 0]])
def test_logits_are_the_clips_own_in_a_batch_of_any_size(golden, trace, rows):
    clips = frames_to_patches(golden, trace)
    patches = torch.cat([clips[row][0] for row in rows])
    found = golden.logits(
        patches, trace["video_grid_thw"][rows], trace["input_ids"][rows], trace["attention_mask"][rows]
    )
    torch.testing.assert_close(found, trace["logits"][rows], atol=1e-5, rtol=0)


def test_pixels_are_reproduced_from_frames_on(golden, trace):
    patches, grids = zip(*frames_to_patches(golden, trace), strict=True)
    assert [list(grid) for grid in grids] == trace["video_grid_thw"].tolist()
    torch.testing.assert_close(torch.cat(patches), trace["pixel_values_videos"], atol=1e-6, rtol=0)
    assert max(worst_differences(golden, trace, torch.cat(patches))) < 1e-5


def test_three_axis_positions_would_be_seen(golden, trace, monkeypatch):
    kinds = (trace["input_ids"] == golden.backbone.config.video_token_id).long() * 2
    mrope, _ = golden.backbone.get_rope_index(
        trace["input_ids"], kinds, video_grid_thw=trace["video_grid_thw"], attention_mask=trace["attention_mask"]
    )
    plain = golden.backbone.language_model.forward
    monkeypatch.setattr(
        golden.backbone.language_model, "forward", lambda **given: plain(**given | {"position_ids": mrope})
    )
    logit, *gradients = worst_differences(golden, trace, trace["pixel_values_videos"])
    assert logit > 0.01 and min(gradients) > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixel_values": torch.zeros(95, 1176)}, r"pixel_values must be \[96, 1176\].* not \[95, 1176\]"),
        ({"grid_thw": torch.tensor([[1, 4, 6], [3, 8, 3]])}, r"hold \[12, 12\] video tokens, .* needs \[6, 18\]"),
        ({"input_ids": torch.full((2, 41), 290)}, "video tokens"),
        ({"special": (1, 2, 3)}, r"every row needs each of the reward tokens \[1, 2, 3\] once"),
    ],
)
def test_inputs_that_do_not_fit_each_other(golden, trace, monkeypatch, change, words):
    given = {
        "pixel_values": trace["pixel_values_videos"],
        "grid_thw": trace["video_grid_thw"],
        "input_ids": trace["input_ids"],
        "attention_mask": trace["attention_mask"],
    } | change
    monkeypatch.setattr(golden, "special_token_ids", given.pop("special", golden.special_token_ids))
    with pytest.raises(ValueError, match=words):
        golden.logits(**given)


TEXTS = ("a red circle moves left", "a blue square")


@pytest.fixture(scope="module")
def model(qwen_files):
    files = (qwen_files.reward, qwen_files.backbone, qwen_files.template)
    return VideoReward.from_pretrained(*files, source_fps=4, min_pixels=3136)


def clips_of(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(frames, 3, height, width, generator=generator) for frames, height, width in shapes]


def test_prompts_and_pixels_matter_and_only_the_third_axis_reads_the_prompt(model):
    clips = clips_of((8, 56, 84), (8, 56, 84))
    scores = model.score_clips([clips[0], clips[0], clips[1]], [*TEXTS, TEXTS[0]])
    assert torch.allclose(scores[0, :2], scores[1, :2], atol=1e-6) and abs(scores[0, 2] - scores[1, 2]) > 1e-4
    assert (scores[0] - scores[2]).abs().min() > 1e-4


def test_rows_are_independent_of_their_batch(model):
    clips = clips_of((8, 56, 84), (13, 40, 40), (4, 100, 60))
    texts = [*TEXTS, "it"]
    together = model.score_clips(clips, texts)
    alone = torch.cat([model.score_clips([clip], [text]) for clip, text in zip(clips, texts, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    same = PromptBatch(TEXTS, torch.zeros(2, 0, 0))
    torch.testing.assert_close(model.score(torch.stack([clips[0], clips[0]]), same)[:1], alone[:1], atol=1e-5, rtol=0)


def test_clips_are_looked_at_twice_a_second(model):
    (clip,) = clips_of((12, 56, 56))
    seen = clip.requires_grad_()
    (gradient,) = torch.autograd.grad(model.score_clips([seen], TEXTS[:1]).sum(), seen)
    assert gradient.flatten(1).abs().amax(1).nonzero().flatten().tolist() == [0, 2, 4, 7, 9, 11]


def test_many_prompts_are_read_with_one_look(model, monkeypatch):
    clips = [clip.requires_grad_() for clip in clips_of((8, 56, 84), (13, 40, 40))]
    texts = [[TEXTS[0], "it", TEXTS[1]], [TEXTS[1], TEXTS[0], "a red square moves right"]]
    looks, visual = [], model.backbone.visual.forward
    monkeypatch.setattr(
        model.backbone.visual, "forward", lambda *args, **given: looks.append(len(args[0])) or visual(*args, **given)
    )
    quality, agreement = model.read(clips, texts)
    assert looks == [sum(math.prod(grid) for grid in ((2, 4, 6), (3, 4, 4)))]
    apart = [model.score_clips(clips, [row[k] for row in texts]) for k in range(3)]
    assert (quality.shape, agreement.shape) == ((2, 2), (2, 3))
    for k in range(3):
        torch.testing.assert_close(quality, apart[k][:, :2], atol=1e-5, rtol=0)
        torch.testing.assert_close(agreement[:, k], apart[k][:, 2], atol=1e-5, rtol=0)
    found = torch.autograd.grad(quality.sum() * 3 + agreement.sum(), clips)
    wanted = torch.autograd.grad(sum(scores.sum() for scores in apart), clips)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


def test_a_batch_is_read_as_its_clips_are(model):
    video = torch.stack(clips_of((8, 56, 56), (8, 56, 56)))
    for one, other in zip(model.read(video, [["it"], ["a"]]), model.read(list(video), [["it"], ["a"]]), strict=True):
        assert torch.equal(one, other)


def test_stream_reward_gets_perplexity_and_gradient(model):
    video = torch.stack(clips_of((8, 56, 84), (8, 56, 84)))
    prompts = PromptBatch(TEXTS, torch.zeros(2, 0, 0))
    reward = StreamReward(model)
    signal = reward(video, prompts, Grid(torch.arange(8) // 2, 4, 6), need={"scores", "perplexity", "gradient"})
    assert signal.perplexity.shape == (2, 4, 4, 6) and signal.gradient.shape == video.shape
    torch.testing.assert_close(signal.perplexity.mean((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(signal.scores, (model.score(video, prompts) - model.mean) / model.std)
    alone = reward(video[:1], PromptBatch(TEXTS[:1], torch.zeros(1, 0, 0)), need={"gradient"}).gradient
    assert signal.gradient.abs().amax() > 0
    torch.testing.assert_close(signal.gradient[:1], alone, atol=1e-6, rtol=1e-3)
    batched = StreamReward(model, RewardSettings(batched=True))
    grid = Grid(torch.arange(8) // 2, 4, 6)
    torch.testing.assert_close(batched(video, prompts, grid, need={"perplexity"}).perplexity, signal.perplexity)


def test_autocast_and_half_precision_stay_near(model, qwen_files):
    clips = clips_of((8, 56, 84))
    exact = model.score_clips(clips, TEXTS[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert (model.score_clips(clips, TEXTS[:1]) - exact).abs().max() < 0.1
    files = (qwen_files.reward, qwen_files.backbone, qwen_files.template)
    half = VideoReward.from_pretrained(*files, source_fps=4, dtype=torch.bfloat16, min_pixels=3136)
    scores = half.score_clips(clips, TEXTS[:1])
    assert scores.dtype == torch.float32 and (scores - exact).abs().max() < 0.1


def test_small_frames_grow_as_published_where_a_data_config_says_so(qwen_files, golden):
    files = (qwen_files.reward, qwen_files.backbone, qwen_files.template)
    assert VideoReward.from_pretrained(*files).pixels.min_pixels == 100_352
    assert VideoReward.from_pretrained(*files, max_pixels=150_000).pixels.max_pixels == 150_000
    assert golden.pixels.min_pixels == 3136 and golden.pixels.max_pixels == 200_704


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (torch.rand(4, 4, 56, 56), r"clips\[1\] must be float \[T, 3, H, W\].*not float32 \[4, 4, 56, 56\]"),
        (torch.rand(3, 56, 56), r"not float32 \[3, 56, 56\]"),
        (torch.rand(3, 3, 56, 56), r"at least 4 frames, not float32 \[3, 3, 56, 56\]"),
        (torch.zeros(4, 3, 56, 56, dtype=torch.uint8), "not uint8"),
        (torch.rand(4, 3, 0, 56), r"not float32 \[4, 3, 0, 56\]"),
        (torch.full((4, 3, 56, 56), 1.1), "go from 1.1 to 1.1"),
        (torch.full((4, 3, 56, 56), -0.1), "go from -0.1"),
        (torch.full((4, 3, 56, 56), torch.nan), "go from nan"),
        (torch.full((4, 3, 56, 56), torch.inf), "go from inf"),
    ],
)
def test_clips_that_cannot_be_scored_are_named(model, clip, words):
    with pytest.raises(ValueError, match=words):
        model.score_clips([*clips_of((4, 56, 56)), clip], TEXTS)


def test_what_is_missing_is_named(model, golden, monkeypatch):
    clips = clips_of((4, 56, 56))
    for call, words in (
        (lambda: model.score_clips(clips, TEXTS), "texts: 2 for 1 clips"),
        (lambda: model.score_clips(clips, "a"), "texts: one string for 1 clips"),
        (lambda: model.score_clips([], []), "texts: 0 for 0 clips"),
        (lambda: model.read(clips, ["it"]), r"its own list of as many prompts as the others, not of \[0\]"),
        (lambda: model.read(clips * 2, [["it"], ["a", "it"]]), r"not of \[1, 2\]"),
        (lambda: model.score(clips[0], PromptBatch(("it",), torch.zeros(1, 0, 0))), r"video must be \[B, T, 3, H, W\]"),
        (lambda: model.score_clips(clips, ["a <|TA_reward|>"]), "must hold .* once each, in this order"),
        (lambda: model.score_clips(clips, ["<|video_pad|>"]), "must hold .* once each, in this order"),
        (lambda: golden.score_clips(clips, ["it"]), "template: not given; pass template="),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    monkeypatch.setattr(model, "source_fps", None)
    with pytest.raises(ValueError, match="source_fps: not given"):
        model.score_clips(clips, ["it"])
