from functools import partial
from pathlib import Path

from PIL import Image

from reelgym.experiments import gallery

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "envs"
NAMES = {"stream_gen", "stream_denoise", "stream_steer", "stream_detect", "self_play"}


def test_the_pictures_of_the_docs_move_and_are_small():
    assert {path.stem for path in FOLDER.iterdir()} == NAMES
    for path in FOLDER.iterdir():
        assert Image.open(path).n_frames > 8 and path.stat().st_size < 150_000


def test_the_gallery_is_made_again(tmp_path, capsys):
    assert gallery.main(["--out", str(tmp_path / "new")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    for name in NAMES:
        assert b"made by a model" in Image.open(FOLDER / f"{name}.webp").info["xmp"]
        with Image.open(tmp_path / "new" / f"{name}.webp") as new, Image.open(FOLDER / f"{name}.webp") as committed:
            assert new.size == committed.size and new.n_frames > 8


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert gallery.main(["--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("gallery: error: ")


def test_an_episode_is_shown_from_reset_to_its_end():
    env = gallery._env("StreamDetect", clips=4, generated=0.0)
    words = [gallery.FAKE, gallery.WAIT]
    canvases = list(gallery._played(env, partial(gallery._said, words), 0, {"clips": [0]}))
    assert len(canvases) == 3 * 3 and env.state.over.all() and not words
