"""A space with both operators, from images to verified bundles."""

import json

import pytest
import yaml

from quasar.export.formats.registry import FORMATS, left_out
from supernet.space import BLOCK_GENES, GLOBAL_GENES

SETTINGS = {
    "name": "operators",
    "threads": 1,
    "data": {"name": "digits", "val_fraction": 0.2},
    "space": {
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 2,
        "head_dim": 8,
        "image_size": [8],
        "embed_dim": [24],
        "depth": [2],
        "num_heads": [2],
        "mlp_ratio": [2],
        "operator": ["attention", "linear-angular"],
        "high_precision_ratio": [0.0, 1.0],
    },
    "train": {"epochs": 12, "batch_size": 64, "lr": 6e-3, "warmup_epochs": 1, "eval_every": 12},
    "hardware": {"array": [8, 16], "backend": "dual"},
    "search": {"targets": [{"latency_ms": 1}], "evaluations": 24, "population": 6, "algorithm": "evolution"},
}


@pytest.mark.slow
def test_a_run_trains_searches_and_exports_either_operator(tmp_path, cli):
    path = tmp_path / "operators.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"output_dir": str(tmp_path / "runs")}))
    run = tmp_path / "runs" / "operators"
    assert cli("run", path).code == 0
    trials = [json.loads(line) for line in (run / "search" / "trials.jsonl").read_text().splitlines()]
    gene = len(GLOBAL_GENES) + BLOCK_GENES.index("operator")
    assert {trial["genotype"][gene] for trial in trials} == {0, 1}
    front = json.loads((run / "search" / "front.json").read_text())
    best = max(target["val_accuracy"] for target in front["targets"])
    assert best > 0.5, "chance is 0.1"

    # whatever was chosen, a subnet of either operator alone is exported and verified in all forms
    subnet = front["targets"][0]["subnet"]
    for name in ("attention", "linear-angular"):
        own = subnet | {"blocks": [block | {"operator": name} for block in subnet["blocks"]]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(own))
        assert cli("export", run, "--subnet", tmp_path / f"{name}.yaml").code == 0
        bundle = run / "export" / name
        forms = json.loads((bundle / "manifest.json").read_text())["formats"]
        assert forms.keys() == FORMATS.keys() - left_out().keys()
        result = cli("verify", bundle, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["passed"]
        assert json.loads(cli("evaluate", bundle, "--json").out)["accuracy"] > 0.3
