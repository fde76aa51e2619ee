"""The classifier: it learns, its seed decides the result, and its file gives it back."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vae import data, model
from vae.errors import InputError
from vae.evaluation import classifier
from vae.idx import PIXELS


@pytest.fixture
def config(small):
    """A small classifier, for a few hundred digits."""
    fields = {"channels": [8, 16], "features": 16, "epochs": 5, "batch_size": 32, "warmup_steps": 10}
    return small(classifier=fields | {"learning_rate": 0.01}).classifier


@pytest.fixture
def network(config):
    torch.manual_seed(0)
    return classifier.Network(config).eval()


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "new" / "classifier.safetensors"
    classifier.save(network, path)
    return path


@pytest.fixture
def grey():
    """Thirty grey images."""
    return torch.randint(0, 256, (30, PIXELS), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def refused(path) -> None:
    with pytest.raises(InputError) as caught:
        classifier.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "quality/dvc.yaml:classifier" in message
    assert len(message.splitlines()) == 1


def test_training_learns_and_is_repeatable(config, digits):
    """Most answers on unseen digits are right; chance would be a tenth. Equal seeds give equal weights."""
    images, unseen = data.split_validation(digits.images, 300)
    labels, answers = data.split_validation(digits.labels, 300)
    assert classifier.accuracy(classifier.fit(images, labels, config), unseen, answers) > 0.9
    first, again, other = (
        classifier.fit(images[:200], labels[:200], config.model_copy(update={"seed": seed})) for seed in (0, 0, 1)
    )
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(other.leave.weight, first.leave.weight)


def test_divergence_is_an_error(config, digits):
    with pytest.raises(InputError, match=r"classifier\.learning_rate"):
        classifier.fit(digits.images[:200], digits.labels[:200], config.model_copy(update={"learning_rate": 1e30}))


def test_a_batch_has_one_shift(grey):
    """All images move by the same number of pixels, up to the given number, in any direction."""
    x, generator, moves = data.unit(grey), torch.Generator().manual_seed(0), set()
    picture = x.view(-1, 28, 28)
    for _ in range(100):
        moved = classifier.shift(x, 1, generator).view(-1, 28, 28)
        places = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
        found = [place for place in places if torch.equal(torch.roll(picture, place, (1, 2)), moved)]
        assert len(found) == 1
        moves |= set(found)
    assert len(moves) == 9
    assert torch.equal(classifier.shift(x, 0, generator), x)


def test_the_last_layer_reads_the_features(network, grey):
    """Logits are a linear map of the features. Probabilities are the softmax of the logits."""
    x = data.unit(grey)
    features = classifier.features(network, x)
    assert features.shape == (30, 16)
    assert features.dtype == torch.float64
    assert (features >= 0).all()
    logits = features @ network.leave.weight.double().T + network.leave.bias.double()
    probabilities = classifier.probabilities(network, x)
    torch.testing.assert_close(torch.softmax(logits, dim=1), probabilities, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(30, dtype=torch.float64))


def test_chunks_equal_the_whole(network, grey, monkeypatch):
    x = data.unit(grey)
    whole = classifier.features(network, x)
    monkeypatch.setattr(classifier, "CHUNK", 7)
    torch.testing.assert_close(classifier.features(network, x), whole, rtol=1e-5, atol=1e-7)


def test_accuracy_is_the_share_of_right_answers(network, grey):
    answers = classifier.probabilities(network, data.unit(grey)).argmax(dim=1).to(torch.uint8)
    assert classifier.accuracy(network, grey, answers) == 1
    answers[:12] = (answers[:12] + 1) % 10
    assert classifier.accuracy(network, grey, answers) == pytest.approx(0.6)


def test_a_saved_classifier_comes_back(network, saved, grey, tmp_path):
    """It has the same configuration, and the same bits in weights and answers. Saved again, it has the same bytes."""
    again = classifier.load(saved)
    assert again.config == network.config
    assert not again.training
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())
    x = data.unit(grey)
    assert torch.equal(classifier.features(again, x), classifier.features(network, x))
    classifier.save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("kept", [0, 8, 100, -1])
def test_a_truncated_file(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    refused(saved)


def test_files_that_are_no_classifier(saved, network, vae, tmp_path):
    """A missing file, a folder, a VAE, and weights that do not fit the configuration are refused."""
    refused(tmp_path / "none.safetensors")
    refused(tmp_path)
    model.save(vae(), tmp_path / "vae.safetensors")
    refused(tmp_path / "vae.safetensors")
    weights, metadata = network.state_dict(), {"classifier": network.config.model_dump_json()}
    for wrong in (weights | {"more": torch.zeros(2)}, weights | {"leave.bias": torch.zeros(9)}):
        save_file(wrong, saved, metadata=metadata)
        refused(saved)
    unknown = json.loads(metadata["classifier"]) | {"depth": 3}
    save_file(weights, saved, metadata={"classifier": json.dumps(unknown)})
    refused(saved)


def test_more_than_ten_classes(config, grey):
    """The error comes before the training."""
    with pytest.raises(InputError, match="10 classes at most, and this data set has label 26"):
        classifier.fit(grey, torch.arange(30).clamp(max=26).to(torch.uint8), config)
