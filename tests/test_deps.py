"""`make deps` writes the code that each stage imports into its deps."""

from pathlib import Path

import pytest
import yaml

from tools import deps
from vae.errors import InputError

ROOT = Path(__file__).parents[1]
FILES = ("dvc.yaml", "quality/dvc.yaml")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_both_files_are_up_to_date_and_stay_as_they_are():
    for name in FILES:
        text = (ROOT / name).read_text()
        assert deps.rewritten(text) == text


def test_full_names_of_imports(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os.path as p, vae.data\nfrom a.b import c as d, e\n\ndef f():\n    import g\n")
    assert deps.imported(script) == {"os.path", "vae.data", "a.b.c", "a.b.e", "g"}


def test_imports_inside_functions_count(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("def f():\n    from vae.evaluation import metrics\n    return metrics\n")
    found = deps.closure(str(script))
    assert {"src/vae/evaluation/metrics.py", "src/vae/objective.py", "src/vae/prior.py"} <= found


def test_names_in_a_module_count_as_the_module(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import vae.optimizers\nfrom vae.params import load\nfrom vae.tracking.store import Store\n")
    assert deps.library_files(script) == {"src/vae/optimizers.py", "src/vae/params.py", "src/vae/tracking/store.py"}
    names = ("optimizers", "params", "errors")
    assert deps.closure(str(script)) == {str(script), *(f"src/vae/{name}.py" for name in names)}


def test_a_list_gets_what_it_lacks_and_loses_what_is_no_longer_imported():
    """Other dependencies and their comments stay. The list is sorted."""
    text = (ROOT / "dvc.yaml").read_text()
    wrong = text.replace("    - src/vae/objective.py\n", "", 1).replace(
        "    - src/vae/prior.py\n", "    - src/x.py\n", 1
    )
    wrong = wrong.replace("    - data\n", "    - data  # a folder\n")
    assert deps.rewritten(wrong) == text.replace("    - data\n", "    - data  # a folder\n")


@pytest.mark.parametrize("stage", ["download", "track"])
def test_code_that_only_observes_is_no_dependency(stage):
    """The exceptions are the two modules that make the data."""
    found = {file for file in deps.closure(f"pipeline/{stage}.py") if file.startswith(deps.OBSERVERS)}
    assert found == (deps.SOURCES if stage == "download" else set())


def test_a_new_stage_gets_its_script_and_imports():
    """The new stage has a command of two lines, and stands before the others."""
    new = "  new:\n    cmd: >-\n      ${python} pipeline/generate.py params.yaml\n      data\n    deps:\n    - data\n"
    text = (ROOT / "dvc.yaml").read_text().replace("stages:\n", f"stages:\n{new}    outs:\n    - x\n", 1)
    before, after = (yaml.safe_load(version)["stages"] for version in (text, deps.rewritten(text)))
    assert after["new"].pop("deps") == ["data", *sorted(deps.closure("pipeline/generate.py"))]
    assert before["new"].pop("deps") == ["data"]
    assert after == before  # nothing else has changed
    assert deps.rewritten(deps.rewritten(text)) == deps.rewritten(text)


def test_a_check_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    right = [(ROOT / name).read_text() for name in FILES]
    wrong = right[0].replace("    - src/vae/objective.py\n", "", 1)
    for path, text in zip(files, (wrong, right[1]), strict=True):
        path.write_text(text)
    with pytest.raises(InputError, match=r"one\.yaml: the deps are not the imports of the stages; `make deps` writes"):
        deps.main(*files, check=True)
    assert files[0].read_text() == wrong
    deps.main(*files, check=False)
    assert [path.read_text() for path in files] == right
    assert capsys.readouterr().out.count("deps written") == 1
    deps.main(*files, check=True)
