"""The networks: shapes, precision, samples, and a file without code whose bytes repeat."""

import json
import pickle
import struct
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vae import layers, model, params
from vae.errors import InputError
from vae.idx import PIXELS

PRIORS = ["standard-normal", "mixture", "flow"]
ARCHITECTURES = ["mlp", "conv"]


def test_every_name_in_the_schema_can_be_built():
    """The schema would refuse any other name, and a name without a class would end a training with a KeyError."""
    fields = params.Model.model_fields
    assert set(get_args(fields["prior"].annotation)) == set(model.PRIORS) == set(PRIORS)
    for networks in (model.ENCODERS, model.DECODERS):
        assert set(get_args(fields["architecture"].annotation)) == set(networks) == set(ARCHITECTURES)


def refused(path) -> str:
    """The error for a file. It is one line that names the file and the way out."""
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
    """(B, P) -> (B, D), (B, D) and (..., D) -> (..., P), by layers of the configured widths."""
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
    """The same shapes as with linear layers, for any channels and any number of blocks."""
    network = vae(architecture="conv", channels=channels, blocks=blocks, latent_dim=4)
    mu, logvar = network.encode(images)
    assert mu.shape == logvar.shape == (5, 4)
    assert network.decode(mu).shape == (5, PIXELS)
    assert network.decode(mu.expand(2, 3, 5, 4)).shape == (2, 3, 5, PIXELS)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_are_independent(vae, images, float64, perturb, architecture):
    """Neither encoding nor decoding depends on the other images of the batch, or on the layout in memory."""
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
def test_convolutions_are_local(vae, float64, perturb):
    """A pixel changes only features near it in the encoder. A feature changes only pixels near it in the decoder."""
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
def test_each_pixel_has_a_bias(vae, float64, perturb, architecture):
    """The decoder's bias is added to the logit of its own pixel, in the order of the pixels."""
    network = perturb(vae(architecture=architecture))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = network.decode(z)
    shift = torch.linspace(-1, 1, PIXELS)
    network.decode.bias.add_(shift)
    torch.testing.assert_close(network.decode(z) - before, shift.expand(4, -1), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_mlp_is_linear_maps_and_relus():
    """There is a ReLU between two layers, and none after the last."""
    torch.manual_seed(0)
    network = layers.mlp([3, 4, 5]).double()
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = (x @ network[0].weight.T + network[0].bias).clamp_min(0)
    expected = hidden @ network[2].weight.T + network[2].bias
    assert (expected < 0).any()
    torch.testing.assert_close(network(x), expected, rtol=1e-13, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mixed_precision_keeps_the_parameters_of_q(vae, images, dtype, architecture):
    """Autocast rounds the matrix products to bfloat16, but mu and logvar are float32."""
    network = vae(architecture=architecture)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        mu, logvar = network.encode(images)
        assert network.decode(mu).dtype == dtype
    assert mu.dtype == logvar.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prior", PRIORS)
def test_double_precision_throughout(vae, images, prior, architecture, float64, perturb):
    """A float64 model computes in float64. No intermediate value is rounded to float32."""
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
@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_means_are_sigmoids_of_logits(vae, float64, perturb, shape, architecture):
    """E[x|z] = 1 / (1 + e^-logits), for any leading shape."""
    network = perturb(vae(architecture=architecture))
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    means = network.means(z)
    assert means.shape == (*shape[:-1], PIXELS)
    torch.testing.assert_close(means, 1 / (1 + torch.exp(-network.decode(z))), rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_precision_keeps_the_sigmoid_in_float32(vae, architecture):
    """Autocast gives bfloat16 logits, but means are float32 sigmoids of them, and samples are float32 too."""
    network, z = vae(architecture=architecture), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        logits, means = network.decode(z), network.means(z)
        sampled = network.sample(4, torch.Generator().manual_seed(0))
    assert logits.dtype == torch.bfloat16
    assert means.dtype == sampled.dtype == torch.float32
    assert torch.equal(means, torch.sigmoid(logits.float()))


@torch.no_grad()
@pytest.mark.parametrize("prior", PRIORS)
def test_samples_are_means_of_samples_of_the_prior(vae, float64, perturb, prior):
    """Equal seeds give equal images, for any state of the global generator. Another seed gives others."""
    network = perturb(vae(prior=prior))
    first = network.sample(7, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    assert torch.equal(first, network.sample(7, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, network.sample(7, torch.Generator().manual_seed(6)))
    expected = network.means(network.prior.sample(7, torch.Generator().manual_seed(5)))
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 6, 7, 20])
def test_samples_do_not_depend_on_the_chunk(vae, float64, perturb, monkeypatch, count):
    """Any number of samples comes back, decoded in chunks of at most 6."""
    network, decoded = perturb(vae(prior="mixture")), []
    whole = network.sample(count, torch.Generator().manual_seed(0))
    monkeypatch.setattr(model, "CHUNK", 6)
    network.decode.register_forward_hook(lambda _module, args, _output: decoded.append(len(args[0])))
    parts = network.sample(count, torch.Generator().manual_seed(0))
    assert whole.shape == parts.shape == (count, PIXELS)
    assert sum(decoded) == count
    assert max(decoded) <= 6
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prior", PRIORS)
def test_round_trip(vae, images, tmp_path, prior, architecture, perturb):
    """A model from a file computes the same bits as the saved one, in evaluation mode, with the same configuration."""
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
    """Equal weights give equal files, even after loading and saving. Other weights give another file."""
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        model.save(vae(seed=seed, prior=prior, architecture=architecture), tmp_path / name)
    model.save(model.load(tmp_path / "first"), tmp_path / "copied")
    first = (tmp_path / "first").read_bytes()
    assert (tmp_path / "again").read_bytes() == first
    assert (tmp_path / "copied").read_bytes() == first
    assert (tmp_path / "other").read_bytes() != first


def test_loading_uses_no_random_numbers(saved):
    """The weights come from the file, for any state of the global generator."""
    torch.manual_seed(1)
    first = model.load(saved).state_dict()
    torch.manual_seed(2)
    second = model.load(saved).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_file_is_json_and_numbers(saved, vae, monkeypatch):
    """The file has a length, a JSON header with the configuration, and tensors. No pickle is written or read."""
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["model"]) == json.loads(vae(prior="flow").config.model_dump_json())
    assert set(header) - {"__metadata__"} == set(vae(prior="flow").state_dict())

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, forbidden)
    assert not model.load(saved).training


def test_a_pickle_is_not_executed(tmp_path):
    """A file that runs code when it is unpickled is refused, and its code does not run."""
    path, trace = tmp_path / "vae.safetensors", tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple:
            return trace.touch, ()

    for write in (lambda: path.write_bytes(pickle.dumps(Payload())), lambda: torch.save(Payload(), path)):
        write()
        refused(path)
        assert not trace.exists()


def test_missing(tmp_path):
    """The error for a missing file, or for a folder, names the path."""
    assert "no such model" in refused(tmp_path / "vae.safetensors")
    assert "no such model" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1, -1000])
def test_truncated(saved, kept):
    """A truncated file is refused, at any length."""
    saved.write_bytes(saved.read_bytes()[:kept])
    refused(saved)


@pytest.mark.parametrize(
    "content", [b"x", b"not a model\n" * 100, b"\xff" * 64, b"\0" * 64, struct.pack("<Q", 2) + b"{}"]
)
def test_not_safetensors(tmp_path, content):
    """A file of another format is refused."""
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


def test_weights_that_do_not_fit_the_configuration(vae, tmp_path):
    """Missing weights, extra weights, weights of other shapes and unknown configurations are refused."""
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
    """If any byte of the header changes to any value, the file is refused in one line, or is still a model."""
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
