"""Scripts report wrong input in one line that names it."""

import pytest

pytestmark = pytest.mark.pipeline

GENERATE = "pipeline/generate.py"


def test_bad_input_is_one_line_that_names_the_thing(project):
    model = "models/vae.safetensors"
    assert "no such run" in project.error("tools/reproduce.py", "params.yaml", "0" * 32)
    (project.folder / "broken.safetensors").write_bytes(b"not a model")
    broken = project.error(GENERATE, "params.yaml", "data", "broken.safetensors", "out")
    assert "broken.safetensors" in broken
    assert "nowhere" in project.error(GENERATE, "params.yaml", "nowhere", model, "out")
    project.params(data={"validation": 3})
    assert "generate.interpolations" in project.error(GENERATE, "params.yaml", "data", model, "out")
    assert not (project.folder / "out").exists()
