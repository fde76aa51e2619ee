"""docs/faults.md shows what `make soak` has counted."""

import json

from tests import soak
from vae.evaluation import readme


def test_the_table_of_faults_is_the_counted_one(root):
    found, page = json.loads((root / "metrics/faults.json").read_text()), (root / "docs/faults.md").read_text()
    assert readme.insert(page, soak.table(found), "faults") == page
    assert found["total"]["lost"] == len(found["losses"]) == 0
    assert found["total"]["injected"] == sum(kind["injected"] for kind in found["kinds"].values()) > 0
