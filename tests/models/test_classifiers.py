"""Any network behind the detector's protocol, and Hugging Face's video classifiers."""

import json

import pytest
import torch
from torch import nn

from reelgym.models.classifiers import IMAGENET, NetworkDetector, load_classifier


class Means(nn.Module):
    """Logits that spell out what the network was shown: its frames' means, weighted by place."""

    def forward(self, video):
        assert video.shape[1:] == (4, 3, 8, 8)
        return video.mean((2, 3, 4)) @ torch.tensor([1.0, 10.0, 100.0, 1000.0])


class Says(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, video):
        return self.logits


def levels(*values):
    """Clips [1, F, 3, 8, 8] of flat frames."""
    return torch.tensor(values).view(1, -1, 1, 1, 1).expand(-1, -1, 3, 8, 8)


def test_a_network_is_shown_the_last_frames():
    detector = NetworkDetector(Means(), frames=4, size=8)
    state = detector.open(1, torch.device("cpu"))
    said = []
    for chunk in (levels(0.2, 0.3, 0.4), levels(0.5, 0.6, 0.7), levels(0.8, 0.9, 1.0)):
        logit, state = detector.watch(chunk, state)
        said.append(float(logit))
    assert said == pytest.approx([432.2, 765.4, 1098.7], rel=1e-5)


def test_rows_at_different_moments_share_a_batch():
    detector = NetworkDetector(Means(), frames=4, size=8)
    _, begun = detector.watch(levels(0.1, 0.2, 0.3), detector.open(1, torch.device("cpu")))
    fresh = detector.open(2, torch.device("cpu"))
    mixed = begun.take(torch.tensor([0, 0])).where(torch.tensor([False, True]), fresh)
    logits, _ = detector.watch(levels(0.5, 0.6, 0.7).expand(2, -1, -1, -1, -1), mixed)
    assert logits.tolist() == pytest.approx([765.3, 765.5], rel=1e-6)


def test_frames_are_brought_to_size():
    video = torch.rand(1, 4, 3, 16, 16)
    detector = NetworkDetector(Means(), frames=4, size=8)
    logit, _ = detector.watch(video, detector.open(1, video.device))
    torch.testing.assert_close(
        logit, Means()(video.unflatten(-1, (8, 2)).unflatten(-3, (8, 2)).mean((-1, -3))), rtol=0.02, atol=0
    )


@pytest.mark.parametrize(
    ("logits", "made", "said"),
    [
        ([2.0, -1.0], 1, [2.0, -1.0]),
        ([[1.0, 4.0], [0.0, -2.0]], 1, [3.0, -2.0]),
        ([[1.0, 4.0], [0.0, 0.0]], 0, [-3, 0]),
    ],
)
def test_logits_of_one_kind_or_two(logits, made, said):
    detector = NetworkDetector(Says(logits), frames=2, size=8, made=made)
    found, _ = detector.watch(torch.rand(2, 3, 3, 8, 8), detector.open(2, torch.device("cpu")))
    assert found.tolist() == pytest.approx(said)


def test_of_many_kinds_the_log_odds_are_told():
    detector = NetworkDetector(Says([[1.0, 2.0, 3.0]]), frames=2, size=8, made=2)
    found, _ = detector.watch(torch.rand(1, 3, 3, 8, 8), detector.open(1, torch.device("cpu")))
    share = torch.tensor([1.0, 2.0, 3.0]).softmax(0)[2]
    torch.testing.assert_close(found[0].sigmoid(), share)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        ([1.0, 2.0, 3.0], r"returned \[3\] for 2 clips: expected \[2\] or \[2, K\] with K above 1"),
        ([[1.0], [2.0]], r"returned \[2, 1\] for 2 clips"),
        ([1.0, float("nan")], "returned logits that are not finite"),
    ],
)
def test_what_a_network_may_not_return(logits, words):
    detector = NetworkDetector(Says(logits), frames=2, size=8)
    with pytest.raises(ValueError, match=words):
        detector.watch(torch.rand(2, 3, 3, 8, 8), detector.open(2, torch.device("cpu")))


def test_a_chunk_of_another_shape_is_refused():
    detector = NetworkDetector(Means(), frames=4, size=8)
    for shape in ((3, 3, 8, 8), (2, 3, 3, 8, 8), (1, 3, 1, 8, 8), (1, 0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"a chunk is \[1, f, 3, H, W\], not"):
            detector.watch(torch.rand(shape), detector.open(1, torch.device("cpu")))
    with pytest.raises(ValueError, match="frames and size are at least 1"):
        NetworkDetector(Means(), frames=0, size=8)


def saved(kind, folder, **changes):
    """A folder with a random classifier of a real class, as small as can be."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {"id2label": {0: "real", 1: "generated"}, "label2id": {"real": 0, "generated": 1}}
    config = getattr(transformers, f"{kind}Config")(
        image_size=16, patch_size=8, num_frames=4, **sizes, **names, **changes
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForVideoClassification")(config).eval()
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["VideoMAE", "Timesformer"])
def test_a_video_classifier_of_hugging_face(kind, tmp_path):
    model = saved(kind, tmp_path)
    detector, other = load_classifier(tmp_path, "generated"), load_classifier(tmp_path, 0)
    video = torch.rand(2, 4, 3, 16, 16)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET)
    with torch.no_grad():
        logits = model(pixel_values=(video - mean) / std).logits
        found, _ = detector.watch(video, detector.open(2, video.device))
        turned, _ = other.watch(video, other.open(2, video.device))
    torch.testing.assert_close(found, logits[:, 1] - logits[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned, -found)
    assert found.std() > 1e-4 and (detector.frames, detector.size) == (4, 16)


def test_pixels_are_scaled_as_the_folder_says(tmp_path):
    model = saved("VideoMAE", tmp_path)
    told = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.25, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    detector, video = load_classifier(tmp_path, 1), torch.rand(1, 4, 3, 16, 16)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in told.values())
    with torch.no_grad():
        logits = model(pixel_values=(video - mean) / std).logits[0]
        found, _ = detector.watch(video, detector.open(1, video.device))
    torch.testing.assert_close(found[0], logits[1] - logits[0], atol=1e-5, rtol=1e-4)


def test_what_is_no_video_classifier(tmp_path):
    from transformers import BertConfig

    saved("VideoMAE", tmp_path / "good")
    with pytest.raises(ValueError, match="no label 'fake'; it has real, generated"):
        load_classifier(tmp_path / "good", "fake")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="no video classifier that transformers can load"):
        load_classifier(tmp_path / "bert", 1)
    with pytest.raises(ValueError, match="no video classifier that transformers can load"):
        load_classifier(tmp_path / "nowhere", 1)
