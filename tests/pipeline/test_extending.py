"""The worked examples of docs/extending.md: each changes a copy of this repository, and its command runs there."""

import re
import shlex
import shutil

import pytest

from tests.pipeline.project import ROOT, TINY

pytestmark = pytest.mark.pipeline

TEXT = (ROOT / "docs/extending.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", TEXT, flags=re.M)[1:]}


def blocks(section: str, kind: str) -> list[str]:
    """The code blocks of one kind in a section."""
    return re.findall(rf"```{kind}\n(.*?)```", SECTIONS[section], flags=re.S)


def apply(folder, block: str) -> None:
    """Makes the changes of a block: `+++ path` starts a new file, `--- path` changes a file in one place."""
    first, *lines = (line or " " for line in block.splitlines())
    mark, name = first.split(" ", 1)
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in keep) for keep in (" -", " +"))
    path = folder / name
    if mark == "+++":
        path.write_text(new)
    else:
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has no such place, or several:\n{old}"
        path.write_text(text.replace(old, new))


def test_every_section_is_an_example():
    assert list(SECTIONS) == ["A parameter", "A prior", "An architecture", "A data set", "A stage", "A recipe"]
    assert all(blocks(section, "diff") and blocks(section, "console") for section in SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_works(project, section):
    shutil.copy(ROOT / "params.yaml", project.folder)  # the comments of which show the place of a change
    for block in blocks(section, "diff"):
        apply(project.folder, block)
    project.params(**TINY)
    project.commit()
    before = project.runs()
    commands = re.findall(r"^\$ (.*)$", "".join(blocks(section, "console")), flags=re.M)
    for command in commands:
        words = shlex.split(command, comments=True)
        project.run(*words, PYTHONPATH="src")
    if section == "A stage":
        bound = project.json("metrics/evaluation.json")["nll_iw_nats"]
        assert (project.folder / "metrics/summary.md").read_text() == f"NLL <= {bound:.2f} nats (K = 4)\n"
        return
    (made,) = project.runs().keys() - before.keys()
    run = project.assert_whole(made)
    if section == "A recipe":
        words = ["--name", "wide", "-S", "model.channels=[32, 64]"]
    name, changes = words[words.index("--name") + 1], [words[i + 1] for i, word in enumerate(words) if word == "-S"]
    assert run.info.run_name == name
    assert changes
    for change in changes:
        key, _, value = change.partition("=")
        assert run.data.params[key] == value
