"""The networks' shapes, and the model file: the same bytes, and no code in it."""

import json
import pickle
import struct
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vae import model, params
from vae.data import PIXELS
from vae.errors import InputError

PRIORS = ["standard-normal", "mixture", "flow"]
ARCHITECTURES = ["mlp", "conv"]


def test_what_the_schema_allows_is_what_can_be_built():
    """A name in one of the two places alone would be refused, or end a training with a KeyError."""
    fields = params.Model.model_fields
    assert set(get_args(fields["prior"].annotation)) == set(model.PRIORS) == set(PRIORS)
    for networks in (model.ENCODERS, model.DECODERS):
        assert set(get_args(fields["architecture"].annotation)) == set(networks) == set(ARCHITECTURES)


def refused(path) -> str:
    """The message with which a file is refused: one line that names it and the way out."""
    with pytest.raises(InputError) as caught:
        model.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "dvc repro --force train" in message
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def images():
    """Five random images."""
    return torch.rand(5, PIXELS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(vae, tmp_path):
    """A file of a small model."""
    path = tmp_path / "vae.safetensors"
    model.save(vae(prior="flow"), path)
    return path


@torch.no_grad()
def test_shapes(vae, images):
    """(B, P) -> two of (B, D); (..., D) -> (..., P); widths are those of the configuration."""
    network = vae(encoder=[32, 8], decoder=[9, 10, 11], latent_dim=4)
    mu, logvar = network.encode(images)
    assert mu.shape == logvar.shape == (5, 4)
    assert network.decode(mu).shape == (5, PIXELS)
    assert network.decode(mu.expand(2, 3, 5, 4)).shape == (2, 3, 5, PIXELS)
    widths = [layer.out_features for part in (network.encode, network.decode) for layer in part.layers[::2]]
    assert widths == [32, 8, 8, 9, 10, 11, PIXELS]


@torch.no_grad()
@pytest.mark.parametrize("channels", [[2, 3], [5, 4]])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_shapes_of_convolutions(vae, images, channels, blocks):
    """The same shapes as those of linear layers, whatever the channels and the number of blocks."""
    network = vae(architecture="conv", channels=channels, blocks=blocks, latent_dim=4)
    mu, logvar = network.encode(images)
    assert mu.shape == logvar.shape == (5, 4)
    assert network.decode(mu).shape == (5, PIXELS)
    assert network.decode(mu.expand(2, 3, 5, 4)).shape == (2, 3, 5, PIXELS)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_are_on_their_own(vae, images, float64, perturb, architecture):
    """No image depends on the others of its batch, in the encoder and in the decoder, nor on how they lie in memory."""
    network = perturb(vae(architecture=architecture))
    x = images.double()
    mu, logvar = network.encode(x)
    alone = [torch.cat(part) for part in zip(*(network.encode(image[None]) for image in x), strict=True)]
    torch.testing.assert_close([mu, logvar], alone, rtol=1e-10, atol=1e-12)
    z = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.decode(z)[1, 2], network.decode(z[1, 2][None])[0], rtol=1e-10, atol=1e-12)
    strided = torch.stack([x, x], dim=2)[..., 0]
    torch.testing.assert_close(network.encode(strided)[0], mu, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_convolutions_keep_places(vae, float64, perturb):
    """A pixel moves the features of its own place in the encoder; a feature moves the pixels of its in the decoder."""
    network = perturb(vae(architecture="conv"))
    features = []
    network.encode.down.register_forward_hook(lambda _module, _input, output: features.append(output))
    x = torch.zeros(2, 28, 28)
    x[1, 2, 25] = 1  # near the top right corner
    network.encode(x.flatten(1))
    change = (features[0][1] - features[0][0]).abs().sum(dim=-1)  # (7, 7)
    rows, columns = (change > 1e-9).nonzero().T
    assert len(rows) > 0
    assert rows.max() <= 2
    assert columns.min() >= 4

    def moved(_module, _input, output):
        output[1, 0, 6, 0] += 50  # the bottom left corner
        return output

    network.decode.blocks7.register_forward_hook(moved)
    logits = network.decode(torch.zeros(2, 3)).view(2, 28, 28)
    rows, columns = ((logits[1] - logits[0]).abs() > 1e-9).nonzero().T
    assert len(rows) > 0
    assert rows.min() >= 20
    assert columns.max() <= 7


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bias_of_each_pixel(vae, float64, perturb, architecture):
    """The decoder's bias is added to the logit of its own pixel, in the order of the pixels."""
    network = perturb(vae(architecture=architecture))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = network.decode(z)
    shift = torch.linspace(-1, 1, PIXELS)
    network.decode.bias.add_(shift)
    torch.testing.assert_close(network.decode(z) - before, shift.expand(4, -1), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_mlp_is_linear_maps_and_relus():
    """A ReLU between two layers, and none after the last."""
    torch.manual_seed(0)
    layers = model.mlp([3, 4, 5]).double()
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = (x @ layers[0].weight.T + layers[0].bias).clamp_min(0)
    expected = hidden @ layers[2].weight.T + layers[2].bias
    assert (expected < 0).any()
    torch.testing.assert_close(layers(x), expected, rtol=1e-13, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mixed_precision_keeps_the_parameters_of_q(vae, images, dtype, architecture):
    """Under autocast the products are rounded, but mu and logvar come out as float32."""
    network = vae(architecture=architecture)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        mu, logvar = network.encode(images)
        assert network.decode(mu).dtype == dtype
    assert mu.dtype == logvar.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prior", PRIORS)
def test_double_precision_throughout(vae, images, prior, architecture, float64, perturb):
    """A float64 model computes in float64: nothing in between is rounded to float32."""
    network = perturb(vae(prior=prior, architecture=architecture).double())
    mu, logvar = network.encode(images.double())
    assert mu.dtype == logvar.dtype == network.decode(mu).dtype == network.prior.log_prob(mu).dtype == torch.float64
    for part in (mu, logvar, network.decode(mu)):
        assert not torch.equal(part, part.float().double())
    z = network.prior.sample(4, torch.Generator().manual_seed(0))
    assert z.dtype == torch.float64
    moved = z + 1e-12  # below the resolution of float32
    assert (network.prior.log_prob(moved) != network.prior.log_prob(z)).all()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prior", PRIORS)
def test_round_trip(vae, images, tmp_path, prior, architecture, perturb):
    """What is read computes bit for bit what was saved, is in evaluation mode, and knows its configuration."""
    network = perturb(vae(seed=3, prior=prior, architecture=architecture))
    path = tmp_path / "new" / "folder" / "vae.safetensors"
    model.save(network, path)
    back = model.load(path)
    assert back.config == network.config
    assert not back.training
    assert back.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in back.state_dict().items())
    mu, logvar = network.encode(images)
    assert torch.equal(torch.stack(back.encode(images)), torch.stack([mu, logvar]))
    assert torch.equal(back.decode(mu), network.decode(mu))
    assert torch.equal(back.prior.log_prob(mu), network.prior.log_prob(mu))
    first, second = (part.prior.sample(3, torch.Generator().manual_seed(1)) for part in (back, network))
    assert torch.equal(first, second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prior", PRIORS)
def test_same_bytes(vae, tmp_path, prior, architecture):
    """The same weights give the same file, also once read and saved again; other weights another."""
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        model.save(vae(seed=seed, prior=prior, architecture=architecture), tmp_path / name)
    model.save(model.load(tmp_path / "first"), tmp_path / "copied")
    first = (tmp_path / "first").read_bytes()
    assert (tmp_path / "again").read_bytes() == first
    assert (tmp_path / "copied").read_bytes() == first
    assert (tmp_path / "other").read_bytes() != first


def test_reading_is_no_draw(saved):
    """The weights come from the file, whatever the state of the global generator."""
    torch.manual_seed(1)
    first = model.load(saved).state_dict()
    torch.manual_seed(2)
    second = model.load(saved).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_file_is_json_and_numbers(saved, vae, monkeypatch):
    """A length, a JSON header with the configuration, and the tensors: no pickle is written or read."""
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["model"]) == json.loads(vae(prior="flow").config.model_dump_json())
    assert set(header) - {"__metadata__"} == set(vae(prior="flow").state_dict())

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a pickle is read")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, forbidden)
    assert not model.load(saved).training


def test_a_pickle_is_not_executed(tmp_path):
    """A file that would run code when unpickled is refused, and runs none."""
    path, trace = tmp_path / "vae.safetensors", tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple:
            return trace.touch, ()

    for write in (lambda: path.write_bytes(pickle.dumps(Payload())), lambda: torch.save(Payload(), path)):
        write()
        refused(path)
        assert not trace.exists()


def test_missing(tmp_path):
    """A missing file, or a folder in its place, is named."""
    assert "no such model" in refused(tmp_path / "vae.safetensors")
    assert "no such model" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1, -1000])
def test_truncated(saved, kept):
    """A file that was cut off is refused, wherever it was cut."""
    saved.write_bytes(saved.read_bytes()[:kept])
    refused(saved)


@pytest.mark.parametrize(
    "content", [b"x", b"not a model\n" * 100, b"\xff" * 64, b"\0" * 64, struct.pack("<Q", 2) + b"{}"]
)
def test_not_safetensors(tmp_path, content):
    """Neither are other files."""
    path = tmp_path / "vae.safetensors"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"format": "pt"}, {"model": ""}, {"model": "[]"}, {"model": "{}"}, {"model": "null"}, {"model": "nan"}],
)
def test_foreign_safetensors(tmp_path, metadata):
    """A safetensors file of another program is refused."""
    path = tmp_path / "vae.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    refused(path)


def test_weights_that_are_not_of_the_configuration(vae, tmp_path):
    """Missing, superfluous, or of other shapes."""
    path = tmp_path / "vae.safetensors"
    network = vae()
    metadata = {"model": network.config.model_dump_json()}
    weights = network.state_dict()
    name = next(iter(weights))
    rest = {key: tensor for key, tensor in weights.items() if key != name}
    for wrong in (rest, weights | {"more": torch.zeros(2)}, weights | {name: weights[name][:-1].clone()}):
        save_file(wrong, path, metadata=metadata)
        refused(path)
    for unknown in ({"depth": 3}, {"prior": "vamp"}, {"latent_dim": 0}):
        save_file(weights, path, metadata={"model": json.dumps(json.loads(metadata["model"]) | unknown)})
        refused(path)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_header(saved, position, value):
    """Whatever one byte of the header becomes, the file is refused in one line, or is a model still."""
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    place = int(position * (8 + length))
    path = saved.with_name("damaged")
    path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    try:
        network, message = model.load(path), None
    except InputError as error:
        network, message = None, str(error)
    if network is None:
        assert message.startswith(f"{path}: ")
        assert len(message.splitlines()) == 1
    else:
        assert network.state_dict().keys() == model.load(saved).state_dict().keys()
