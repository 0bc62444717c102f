"""A stack of one's own: what its toml may say, what each fault is told as, and the check of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from reelgym.distill.recipes import DISTILL
from reelgym.envs.stack import Stack, StackSpec
from reelgym.experiments import cli
from reelgym.models.codec import WanCodec
from reelgym.models.prompts import PromptBatch
from reelgym.models.umt5 import UMT5TextEncoder
from reelgym.models.videoreward import VideoReward
from reelgym.models.wan_files import load_transformer
from reelgym.video import write_video

STACKS = Path(__file__).parent.parent.parent / "docs" / "stacks"


def check(toml, capsys, *options):
    status = cli.main(["stack", "check", str(toml), "--out", str(toml.parent / "out"), *options])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()[-1] if status else ""


def edited(real_stack, old, new):
    """A stack.toml beside the true one, with something else in it."""
    toml, text = real_stack.with_name("edited.toml"), real_stack.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))
    return toml


def test_a_real_stack_is_made_of_what_its_file_says(real_stack):
    stack = StackSpec(str(real_stack)).load()
    assert isinstance(stack.codec, WanCodec) and isinstance(stack.part("encoder"), UMT5TextEncoder)
    assert isinstance(stack.reward.model, VideoReward) and stack.reward.model.source_fps == stack.pipeline.fps == 8
    assert stack.pipeline.size == (48, 80) and stack.generator.latent_shape == (4, 6, 10)
    assert len(stack.generator.sigmas) == 4 and stack.teacher_sampling.guidance == 3
    assert stack.null().shape == (8, 16) and stack.null().any()  # the end of an empty text is a token too
    assert stack.teacher.transformer is not stack.student().model.transformer
    assert set(stack.weights()) == {"codec", "student", "teacher", "encoder", "reward"}
    assert real_stack in StackSpec(str(real_stack)).depends_on


def test_a_reward_refuses_clips_of_an_unknown_rate(real_stack):
    toml = edited(real_stack, "fps = 8\n", "")
    assert Stack.load(toml).reward.model.source_fps == Stack.load(toml).fps == 16
    toml.write_text(toml.read_text().replace('student = "wan"\n', ""))
    reward = Stack.load(toml).reward
    with pytest.raises(ValueError, match="source_fps: not given.* fps"):
        reward.score(torch.rand(1, 5, 3, 48, 80), PromptBatch(("a circle",), torch.zeros(1, 0, 0)))


def test_what_a_file_says_over_its_base(real_stack, stack):
    toml = real_stack.with_name("over.toml")
    toml.write_text(
        'base = "stack.toml"\nfps = 16\n[cache]\nwindow_frames = 4\n[parts.student]\nweights = "wan"\nsteps = 2\n'
    )
    over = Stack.load(toml)
    assert over.fps == 16 and over.layout.chunks == 2 and over.reward.model.source_fps == 16
    config = over.generator.model.cache_config
    assert (config.window_frames, config.sink_frames) == (4, 3) and len(over.generator.sigmas) == 2
    toml.write_text(f'base = "{stack}"\n[cache]\nsink_frames = 3\n')
    assert Stack.load(toml).generator.model.cache_config.sink_frames == 3 and Stack.load(toml).grammar == "plain"
    assert Stack.load(toml).null().eq(0).all()


def test_a_real_stack_is_checked(real_stack, capsys):
    status, out, error = check(real_stack, capsys)
    assert status == 0, error
    for words in (
        "AutoencoderKLWan, 4 channels, a latent cell for 8x8 pixels and 4 frames",
        "UMT5, 2 layers, 8 tokens of width 16",
        "Wan, 2 layers of width 24, patch 1x2x2, 4 channels, 8 tokens of width 16, float32",
        "VideoReward: VQ, MQ, TA",
        "2 chunks of 1 latent frames: 5 frames, 0.62 s at 8 a second, of 80x48 pixels",
        "1 frames of 80x48 pixels",
        "reward gradient, one clip",
    ):
        assert words in out
    rows = json.loads((real_stack.parent / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["kind"] == "trial"] == ["chunk", "score", "update"]
    (student,) = [row for row in rows if row["name"] == "student"]
    assert student["parameters"] == sum(p.numel() for p in Stack.load(real_stack).student().model.parameters())


def test_a_real_stack_trains_from_the_cache_alone(real_stack, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REELGYM_CACHE", str(tmp_path / "cache"))
    folder, toml = tmp_path / "clips", real_stack.with_name("data.toml")
    folder.mkdir()
    rows = [{"file_name": f"{n}.mp4", "text": "a red circle moves left", "split": "train"} for n in range(2)]
    for number, row in enumerate(rows):
        frames = torch.randint(256, (7, 60, 80, 3), generator=torch.Generator().manual_seed(number))
        write_video(folder / row["file_name"], frames.to(torch.uint8), 8, made_by=None)
    rows.append({"file_name": "broken.mp4", "text": "a blue square"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.csv").write_text("prompt,split\na red circle moves left,train\na blue square,validation\n")
    toml.write_text(f'base = "stack.toml"\nclips = "{folder}"\nprompts = "{tmp_path / "prompts.csv"}"\n')
    (folder / "broken.mp4").write_text("no video")
    cached = ["stack", "cache", str(toml), "--out", str(tmp_path / "out")]
    assert cli.main(cached) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert f"{folder}: 2 clips (2 train, 0 validation, 0 test)" in out and "2 prompts (1 train, 1 validation" in out
    assert "resampled, and cut at the centre: 2 (0.mp4: 80x60 pixels" in err
    lost = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][-1]
    assert (lost["name"].split(": ")[0], lost["why"]) == ("broken.mp4", "clips that cannot be used")
    expected = Stack.load(real_stack).encoder.encode(["a red circle moves left", ""])
    for kind, name in ((UMT5TextEncoder, "from_pretrained"), (WanCodec, "encode")):
        monkeypatch.setattr(kind, name, lambda *_, **__: pytest.fail("it was to come from the cache"))
    stack = Stack.load(toml)
    trainer = DISTILL["continued"].with_batch(2).trainer(stack, stack.student())
    x0, embeds = trainer.clips(2, 0)
    assert x0.shape == (2, 2, 4, 6, 10) and trainer.update()["grad_norm"] > 0
    assert torch.equal(embeds, expected[:1].expand(2, 2, -1, -1)) and torch.equal(stack.null(), expected[1])
    assert torch.equal(stack.prompts()(3, 0)[0], expected[:1].expand(3, 2, -1, -1))
    assert stack.prompts("validation")(1, 0)[1] == (("a blue square",) * 2,)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fps = 8", "fsp = 8", "unknown fsp; did you mean fps?"),
        ("fps = 8", 'fps = "8"', "fps is a number, not '8'"),
        ("fps = 8", "fps =", "cannot be read as TOML"),
        ('"prompts.jsonl"', '"none.txt"', "prompts: no file"),
        ('"80x48"', '"80 by 48"', "write WIDTHxHEIGHT"),
        ("chunks = 2", "chunks = 0", "[layout]: chunks, frames_per_chunk and window_chunks are at least 1"),
        ("window_chunks", "windows", "[layout]: unknown windows; did you mean window_chunks?"),
        ("text_len = 8", "text_len = 8.5", "[parts.encoder]: text_len is a whole number, not 8.5"),
        ('weights = "wan", text_len', "text_len", "[parts.encoder]: says no weights"),
        ('codec = "wan"', 'codec = "vae"', "[parts.codec]: no folder or file"),
        ('codec = "wan"', 'codec = 3', "[parts.codec]: a folder, an import path or a table, not 3"),
        ("guidance", "guide", "[parts.teacher]: unknown guide; did you mean guidance?"),
        ("[parts.reward]", '[parts.teacher.x]', "TOML"),
    ],
)  # fmt: skip
def test_a_fault_of_the_file_is_one_line(real_stack, capsys, old, new, words):
    status, out, error = check(edited(real_stack, old, new), capsys)
    assert status == 1 and not out and error.startswith("reelgym: error: ") and words in error


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"80x48"', '"84x48"', "student: size 84x48: codec and transformer take multiples of 16x16 pixels"),
        ('student = "wan"', 'student = "judge/reward"', "student: "),
        ('"judge/reward"', '"judge/backbone"', "reward: "),
        ("window_chunks = 2", "window_chunks = 1", "scores no fewer than 4 frames, a window of [layout] has 1"),
        ('encoder = { weights = "wan", text_len = 8 }', 'encoder = "json:dumps"', "encoder: "),
        (
            'codec = "wan"',
            'codec = "wan"\ndetector = "json:JSONDecoder"',
            "detector: a JSONDecoder without open, watch",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_one_line(real_stack, capsys, old, new, words):
    status, _, error = check(edited(real_stack, old, new), capsys)
    assert (
        status == 1 and error.startswith(f"reelgym: error: {real_stack.with_name('edited.toml')}: ") and words in error
    )


@pytest.fixture
def downloads(tmp_path, monkeypatch, wan_folder, qwen_files):
    """The working folder of who has downloaded what docs/stacks names, in the small."""
    monkeypatch.chdir(tmp_path)
    for name, place in (
        ("Wan2.1-T2V-1.3B-Diffusers", wan_folder),
        ("VideoReward", qwen_files.reward),
        ("Qwen2-VL-2B-Instruct", qwen_files.backbone),
        ("VideoAlign", qwen_files.template),
        ("runs/finetune-reward/student", wan_folder),
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(place)
    torch.save({"generator_ema": load_transformer(wan_folder).state_dict()}, "self_forcing_dmd.pt")
    Path("prompts.txt").write_text("a red circle moves left\n")
    Path("clips").mkdir()
    return tmp_path


INIT = (
    "stack init --wan Wan2.1-T2V-1.3B-Diffusers --checkpoint self_forcing_dmd.pt --reward VideoReward "
    "--backbone Qwen2-VL-2B-Instruct --template VideoAlign --prompts prompts.txt --out wan-1.3b.toml"
).split()


def test_the_examples_are_what_init_writes_and_commands_read(downloads, capsys):
    assert cli.main(INIT) == 0, capsys.readouterr().err
    assert Path("wan-1.3b.toml").read_text() == (STACKS / "wan-1.3b.toml").read_text()
    written = Stack.load("wan-1.3b.toml")
    assert written.layout.chunks == 7 and written.fps == 16 and written.codec.size == (480, 832)
    assert {written.student().model.dtype, written.teacher.dtype} == {torch.bfloat16}
    shutil.copy(STACKS / "mixture.toml", "mixture.toml")
    mixture = Stack.load("mixture.toml")
    assert mixture.layout.chunks == 3 and set(mixture.data) == {"prompts", "clips"}
    assert len(mixture.generator.sigmas) == 2 and mixture.reward.model.axes == ("VQ", "MQ", "TA")
    tiny = Stack.load(STACKS / "tiny.toml")
    assert tiny.layout.chunks == 6 and type(tiny.heldout.model).__name__ == "LocalReward"


def test_init_says_what_it_misses(downloads, capsys):
    Path("there.toml").write_text("")
    for options, words in (
        (["--wan", "VideoReward"], "has neither vae/ nor Wan2.1_VAE.pth"),
        (["--wan", "Wan2.1-T2V-1.3B-Diffusers", "--out", "there.toml"], "is there already"),
        (["--wan", "Wan2.1-T2V-1.3B-Diffusers", "--reward", "nothing"], "[parts.reward]: no folder or file nothing"),
        (["--wan", "Wan2.1-T2V-1.3B-Diffusers", "--encoder", "VideoReward"], "has no text_encoder/"),
    ):
        assert cli.main(["stack", "init", *options]) == 1
        assert words in capsys.readouterr().err and not Path("stack.toml").exists()
    assert cli.main(["stack", "init", "--wan", "Wan2.1-T2V-1.3B-Diffusers"]) == 0
    assert not Stack.load("stack.toml").has("reward") and not Stack.load("stack.toml").data


TRAININGS = ("finetune reward --prompts 1", "distill dmd --batch 1", "distill continued --batch 1")


@pytest.mark.parametrize("command", TRAININGS)
def test_a_real_student_is_trained_saved_and_streams(real_stack, tmp_path, capsys, command):
    from diffusers import WanTransformer3DModel

    shared = ["--stack", str(real_stack), "--out", str(tmp_path / "run"), "--validation", "1", "--no-guard"]
    assert cli.main([*command.split(), *shared, "--updates", "1", "--student-steps", "2"]) == 0, capsys.readouterr().err
    assert "reward on validation prompts: " in capsys.readouterr().out
    student = tmp_path / "run" / "student"
    told = json.loads((student / "student.json").read_text())
    assert told["steps"] == 1 and told["sampler_steps"] == 2 and set(told["quality"]) >= {"reward", "reward/VQ"}
    start, trained = Stack.load(real_stack).generator, Stack.load(real_stack).with_weights(student=student).generator
    written = WanTransformer3DModel.from_pretrained(student / "transformer").state_dict()
    ours = trained.model.transformer.state_dict()
    assert all(torch.equal(written[name], ours[name]) for name in written) and len(trained.sigmas) == 2
    assert any(not torch.equal(ours[name], old) for name, old in start.model.transformer.state_dict().items())
    if command == TRAININGS[0]:
        clip = ["generate", "a circle ; then a square", "--stack", str(real_stack), "--out", str(tmp_path / "clip.mp4")]
        for options, who in ((["--student", str(student)], "the student"), (["--model", "teacher"], "the teacher")):
            assert cli.main([*clip, "--chunks", "2", *options]) == 0, capsys.readouterr().err
            assert f"clip.mp4: 5 frames, 0.625 s, by {who}" in capsys.readouterr().out


def test_a_guard_does_not_watch_what_is_maximised(stack, tmp_path, capsys):
    toml = tmp_path / "stack.toml"
    toml.write_text(f'base = "{stack}"\n[parts]\nheldout = "{stack}/reward"\n')
    assert cli.main(["finetune", "reward", "--stack", str(toml), "--out", str(tmp_path / "run")]) == 1
    assert "the judge heldout has the weights of the reward that is maximised" in capsys.readouterr().err


def test_trainings_say_what_a_real_stack_lacks(real_stack, capsys):
    bare = real_stack.with_name("edited.toml")
    bare.write_text(real_stack.read_text().replace('prompts = "prompts.jsonl"\nclips = "clips"\n', ""))
    for command, words in (
        ("finetune reward", "the guard watches a held-out reward, and the stack has none"),
        ("finetune reward --no-guard", 'this stack has no prompts; say prompts = "FILE" in its toml'),
        ("distill continued --no-guard", 'this stack has no clips; say clips = "FOLDER" in its toml'),
    ):
        assert cli.main([*command.split(), "--stack", str(bare)]) == 1
        assert words in capsys.readouterr().err


def test_a_teacher_guides_a_distillation_as_its_file_says(real_stack):
    stack = Stack.load(real_stack)
    assert DISTILL["dmd"].with_batch(1).trainer(stack, stack.student()).config.guidance == 3
    assert DISTILL["dmd"].guidance == 2


def test_a_lost_shard_and_another_width_are_one_line(real_stack, wan_folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(wan_folder, broken)
    index = {"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (broken / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    config = broken / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"d_model": 16', '"d_model": 24'))
    toml = edited(real_stack, 'student = "wan"', f'student = "{broken}"')
    assert "student: " in (error := check(toml, capsys)[2]) and "lacks diffusion_pytorch_model-00002" in error
    toml = edited(real_stack, 'encoder = { weights = "wan"', f'encoder = {{ weights = "{broken}"')
    assert "encoder: " in check(toml, capsys)[2]
    with pytest.raises(ValueError, match="reads prompts of width 16, the encoder's are 24 wide"):
        Stack.load(toml).student()
