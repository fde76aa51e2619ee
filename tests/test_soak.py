"""docs/faults.md shows what `make soak` has counted."""

import json

from tests import soak
from vae.evaluation import readme


def test_the_table_of_faults_is_the_counted_one(root):
    found, page = json.loads((root / "metrics/faults.json").read_text()), (root / "docs/faults.md").read_text()
    assert readme.insert(page, soak.table(found), "faults") == page
    for name, total in found["total"].items():
        assert total == sum(kind[name] for kind in found["kinds"].values())
    assert found["total"]["injected"] > 0
    assert bool(found["total"]["lost"]) == bool(found["losses"])  # each loss has its reason
