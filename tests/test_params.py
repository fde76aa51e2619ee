"""params.yaml: the schema alone decides types, and an error is one clear line."""

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.errors import InputError
from vae.params import Params, leaves, load, parse


@pytest.fixture(scope="session")
def tree(root) -> dict:
    """The sections of params.yaml, with all values as text."""
    return yaml.load((root / "params.yaml").read_text(), Loader=yaml.BaseLoader)


def replaced(tree: dict, section: str, key: str, text: str) -> str:
    """params.yaml with another text for one value, without quotes, as an editor or DVC would write it."""
    lines = [f"{section}:", f"  {key}: {text}"]
    lines += [f"  {name}: {value!r}" for name, value in tree[section].items() if name != key]
    rest = {name: block for name, block in tree.items() if name != section}
    return "\n".join(lines) + "\n" + yaml.safe_dump(rest)


def refused(text: str) -> str:
    """The error for a text. It is one line that names the file."""
    with pytest.raises(InputError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert len(message.splitlines()) == 1
    return message


def test_leaves_are_all_of_the_published_file(root, tree):
    """The committed params.yaml is valid. Its leaves are exactly the leaves of the result, with the same values."""
    params = load(root / "params.yaml")
    values = leaves(params)
    assert set(values) == {f"{section}.{key}" for section, block in tree.items() for key in block}
    for section, block in tree.items():
        for key, text in block.items():
            value = values[f"{section}.{key}"]
            assert value == getattr(getattr(params, section), key)
            if isinstance(value, bool):
                assert str(value).lower() == text
            else:
                assert value == ([int(width) for width in text] if isinstance(text, list) else type(value)(text))


@pytest.mark.parametrize(
    ("section", "key", "text", "value"),
    [
        ("train", "learning_rate", "1e-05", 1e-5),  # written by `-S train.learning_rate=0.00001`; a string in YAML 1.1
        ("train", "learning_rate", "1E-5", 1e-5),
        ("train", "learning_rate", "1.0e-05", 1e-5),
        ("train", "learning_rate", ".5", 0.5),
        ("train", "learning_rate", "'0.001'", 1e-3),
        ("train", "learning_rate", "1", 1.0),
        ("train", "seed", "012", 12),  # ten in YAML 1.1
        ("train", "epochs", "007", 7),
        ("model", "encoder", "[012, 8]", [12, 8]),
        ("model", "encoder", "[64]", [64]),
        ("track", "experiment", "on", "on"),  # true in YAML 1.1
        ("track", "experiment", "012", "012"),
        ("track", "experiment", "1e3", "1e3"),
        ("track", "experiment", "no", "no"),
        ("track", "experiment", "/Shared/vae", "/Shared/vae"),  # Databricks
        ("track", "experiment", "/Users/a.b+c@example.org/vae", "/Users/a.b+c@example.org/vae"),
        ("track", "experiment", "team/vae", "team/vae"),
    ],
)
def test_dialects_of_yaml_give_the_obvious_value(tree, section, key, text, value):
    """The schema decides the type of values that YAML 1.1 and 1.2 read differently."""
    found = getattr(getattr(parse(replaced(tree, section, key, text)), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "true", "~", "null", "", "12:30", "1:2", "0x10", "0b1", "[1]", "{}"]
)
@pytest.mark.parametrize(("section", "key"), [("train", "epochs"), ("train", "seed"), ("train", "learning_rate")])
def test_values_that_are_not_numbers_are_refused(tree, section, key, text):
    """A switch, a sexagesimal or hexadecimal number, a blank or a container is no number."""
    assert f"{section}.{key}: " in refused(replaced(tree, section, key, text))


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("train", "learning_rate", "nan"),
        ("train", "learning_rate", ".nan"),
        ("train", "learning_rate", "inf"),
        ("train", "learning_rate", ".inf"),
        ("train", "learning_rate", "1e400"),
        ("train", "learning_rate", "0"),
        ("train", "learning_rate", "-0.001"),
        ("train", "gradient_clip", "inf"),
        ("train", "gradient_clip", "-1"),
        ("train", "kl_warmup_epochs", "nan"),
        ("train", "epochs", "0"),
        ("train", "epochs", "1.5"),
        ("train", "epochs", "99999999999999999999"),
        ("train", "prior_epochs", "-1"),
        ("train", "refine_epochs", "-1"),
        ("train", "refine_importance_samples", "0"),
        ("train", "refine_rate", "0"),
        ("train", "refine_rate", "1.1"),
        ("train", "batch_size", "-1"),
        ("train", "augmentation", "1.1"),
        ("train", "augmentation", "-0.1"),
        ("train", "seed", "-1"),
        ("train", "threads", "0"),
        ("train", "warmup_steps", "-1"),
        ("train", "schedule", "linear"),
        ("train", "device", "tpu"),
        ("train", "device", "mps"),
        ("train", "precision", "fp16"),
        ("data", "name", "MNIST"),
        ("data", "validation", "0"),
        ("data", "binarization", "static"),
        ("model", "encoder", "[]"),
        ("model", "encoder", "512"),
        ("model", "encoder", "[512, 0]"),
        ("model", "decoder", "[512, wide]"),
        ("model", "latent_dim", "1"),
        ("model", "prior", "vamp"),
        ("evaluate", "importance_samples", "0"),
        ("generate", "rows", "0"),
        ("annealing", "temperatures", "1"),
        ("annealing", "step_size", "0"),
        ("annealing", "chains", "0"),
        ("track", "experiment", "'a b'"),
        ("track", "experiment", "''"),
        ("track", "experiment", "/"),
        ("track", "experiment", "team/"),
        ("track", "experiment", "team//vae"),
        ("track", "experiment", "../vae"),
        ("track", "experiment", "a" * 251),
        ("track", "registered_model", "a/b"),
        ("classifier", "channels", "[16]"),
        ("classifier", "shift", "-1"),
        ("quality", "samples", "1"),
        ("quality", "neighbours", "0"),
    ],
)
def test_wrong_values_are_refused(tree, section, key, text):
    """A value out of range, or not among the choices, is an error that names the key."""
    message = refused(replaced(tree, section, key, text))
    assert f"{section}.{key}" in message
    assert "got" in message


def test_unknown_key(tree):
    """The error names the unknown key, and the keys of the section."""
    message = refused(replaced(tree, "train", "lr", "0.001"))
    assert "train.lr: unknown key" in message
    assert "learning_rate" in message


def test_unknown_section(tree):
    """The error names the unknown section, and the sections of the file."""
    message = refused(yaml.safe_dump(tree | {"training": {"epochs": "1"}}))
    assert "training: unknown key" in message
    assert "train, evaluate" in message


def test_every_missing_key_is_named(tree):
    """No key has a default."""
    for section, block in tree.items():
        for key in block:
            partial = copy.deepcopy(tree)
            del partial[section][key]
            assert f"{section}.{key}: missing" in refused(yaml.safe_dump(partial))


def test_every_missing_section_is_named(tree):
    """No section has a default."""
    for section in tree:
        partial = {name: block for name, block in tree.items() if name != section}
        assert f"{section}: missing" in refused(yaml.safe_dump(partial))


@pytest.mark.parametrize("block", ["7", "[1, 2]", "text", ""])
def test_a_section_that_is_no_mapping(tree, block):
    """The error names the section."""
    rest = {name: value for name, value in tree.items() if name != "train"}
    assert "train: " in refused(f"train: {block}\n{yaml.safe_dump(rest)}")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "42", "just words", "- data\n- model\n", "null"])
def test_a_file_that_is_no_mapping(text):
    """The error is about the whole file, so it names no key."""
    message = refused(text)
    assert message.startswith("params.yaml: ")
    assert ": : " not in message


@pytest.mark.parametrize("text", ["data: [", "data:\n\tname: mnist", "a: b: c", "%", "\x00", "data: &a\n  - *b"])
def test_a_file_that_is_not_yaml(text):
    """The parser's error of several lines becomes one line."""
    assert "not valid YAML" in refused(text)


def test_conflict_marks_are_named():
    assert "conflict marks" in refused("data:\n<<<<<<< HEAD\n  name: mnist\n=======\n  name: digits\n>>>>>>> other\n")


def test_the_file_is_named_as_given(tmp_path):
    """Errors have the path that the user gave."""
    path = tmp_path / "other.yaml"
    path.write_text("data: 1\n")
    with pytest.raises(InputError, match=r"other\.yaml: "):
        load(path)


def test_a_file_that_cannot_be_read(tmp_path):
    """The error for a missing file, a folder or a binary file is one line that names it."""
    (tmp_path / "latin.yaml").write_bytes(b"data: \xe9\xff")
    for name in ("missing.yaml", "", "latin.yaml"):
        with pytest.raises(InputError) as caught:
            load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read")
        assert len(str(caught.value).splitlines()) == 1


def test_params_cannot_be_changed(root):
    """Params are read-only."""
    params = load(root / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.epochs = 1


ANY_VALUE = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["1e-05", "on", "012", "12:30", "1_000", " 5 ", "0.0", "1.0", "-0", "١٢", "mnist", "auto", "flow"]),
    st.none(),
    st.lists(st.integers(-2, 20000).map(str), max_size=4),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(choice=st.integers(min_value=0), value=ANY_VALUE)
def test_any_value_is_refused_by_name_or_of_the_right_type(tree, choice, value):
    """Any value of any key is an error that names the key, or becomes a value of the right type."""
    names = [(section, key) for section, block in tree.items() for key in block]
    section, key = names[choice % len(names)]
    changed = copy.deepcopy(tree)
    changed[section][key] = value
    text = yaml.safe_dump(changed)
    try:
        params, message = parse(text), None
    except InputError as error:
        params, message = None, str(error)
    if params is None:
        assert message.startswith(f"params.yaml: {section}.{key}")
        assert len(message.splitlines()) == 1
    else:
        assert Params.model_validate(params.model_dump(), strict=True) == params
        assert parse(yaml.safe_dump(params.model_dump())) == params


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ("{mlflow.runName: x}", "string should match pattern"),
        ("{vae.key: x}", "string should match pattern"),
        ("{'a b': x}", "string should match pattern"),
        ("{a: ''}", "at least 1 character"),
        ("{a: " + "x" * 501 + "}", "at most 500 characters"),
        ("[a, b]", "valid dictionary"),
        ("{a: [b]}", "valid string"),
        ("{" + ", ".join(f"t{number}: x" for number in range(21)) + "}", "at most 20 items"),
    ],
)
def test_wrong_tags_are_one_line_that_names_them(root, tags, reason):
    """Names with a dot belong to MLflow and to this project."""
    text = (root / "params.yaml").read_text()
    assert "tags: {}" in text
    message = refused(text.replace("tags: {}", f"tags: {tags}"))
    assert message.startswith("params.yaml: track.tags")
    assert reason in message
    assert "\n" not in message


def test_tags_are_texts(root):
    text = (root / "params.yaml").read_text().replace("tags: {}", "tags: {owner: me, number: 012}")
    assert parse(text).track.tags == {"owner": "me", "number": "012"}
