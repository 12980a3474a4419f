"""The report of complete, partial and damaged runs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.explore import best_accelerator
from quasar.report import RunData, write_report
from search.trial import ParetoFront, Trial, best_under
from supernet.lowering import lower, lower_many
from supernet.space import SearchSpace

SPACE = SearchSpace(
    num_classes=10,
    in_chans=3,
    patch_size=4,
    head_dim=32,
    image_size=(32,),
    embed_dim=(96, 128, 192),
    depth=(4, 6, 8),
    num_heads=(3, 4, 6),
    mlp_ratio=(2.0, 3.0, 4.0),
    high_precision_ratio=(0.0, 0.25, 0.5, 1.0),
)
COST_KEYS = ("latency_ms", "fps", "cycles", "dsp", "bram18", "lut", "ff", "energy_mj")


def write_run(
    folder: Path,
    *,
    trials: int = 40,
    epochs: int = 6,
    limits_ms: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8),
    fps: tuple[float, ...] = (),
) -> Path:
    """A run with true costs and invented accuracies; limits that no trial meets become infeasible targets."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        f"name: {folder.name}\nseed: 7\ndata:\n  name: cifar10\nsearch:\n  algorithm: evolution\n", encoding="utf-8"
    )
    _write_json(folder / "env.json", {"python": "3.11.2", "cpus": 2, "packages": {"torch": "2.9.1", "numpy": "2.3.5"}})
    _write_lines(folder / "train" / "metrics.jsonl", [_epoch(e, epochs) for e in range(1, epochs + 1)])
    device = load_device("zcu102")
    accelerator = best_accelerator([lower(SPACE.largest())], device, backend="dual", array=(20, 48))
    model = FpgaCostModel(device, accelerator)
    genotypes = SPACE.sample(rng, trials)
    latency_ms = model.estimate_many(lower_many(SPACE.arrays(genotypes))).latency_ms
    accuracy = 0.93 - 0.12 / (0.4 + latency_ms) + rng.normal(0, 0.008, trials)
    records = [
        Trial(
            index=i,
            generation=i // 20,
            digest=SPACE.decode(genotypes[i]).digest,
            genotype=tuple(genotypes[i].tolist()),
            val_accuracy=float(accuracy[i]),
            val_loss=float(1.2 - accuracy[i]),
            latency_ms=float(latency_ms[i]),
        )
        for i in range(trials)
    ]
    _write_lines(folder / "search" / "trials.jsonl", [record.to_dict() | {"images": 5000} for record in records])
    front = ParetoFront.of(records)
    targets = [_target(limit, None, records, model) for limit in limits_ms]
    targets += [_target(1000 / rate, rate, records, model) for rate in fps]
    _write_json(
        folder / "search" / "front.json",
        {
            "device": "zcu102",
            "hypervolume": front.hypervolume(slowest_ms=float(latency_ms.max())),
            "fastest_latency_ms": float(latency_ms.min()),
            "slowest_latency_ms": float(latency_ms.max()),
            "targets": targets,
            "pareto": [trial.to_dict() for trial in front.trials],
        },
    )
    for number, target in enumerate(targets):
        if target["status"] == "ok":
            bundle = folder / "export" / f"target-{number}"
            _write_json(bundle / "manifest.json", {"subnet_digest": target["digest"]})
            (bundle / "model.onnx").write_bytes(bytes(2048))
    return folder


def _epoch(epoch: int, epochs: int) -> dict[str, Any]:
    probes = {name: 0.85 - gap - 0.5 * np.exp(-3 * epoch / epochs) for name, gap in (("max", 0.0), ("min", 0.08))}
    return {
        "epoch": epoch,
        "step": 100 * epoch,
        "lr": 1e-3 * (1 + np.cos(np.pi * epoch / epochs)) / 2,
        "train_loss": 1.1 + np.exp(-3 * epoch / epochs),
        "seconds": 61.0,
        "val": {n: {"accuracy": a, "loss": 1.5 - a, "images": 5000} for n, a in probes.items()} if epoch % 2 else None,
    }


def _target(limit_ms: float, fps: float | None, trials: list[Trial], model: FpgaCostModel) -> dict[str, Any]:
    target: dict[str, Any] = dict.fromkeys(
        ("reason", "nearest_latency_ms", "digest", "subnet", "val_accuracy", "test_accuracy", "cost")
    )
    target |= {"latency_ms": limit_ms, "fps": fps, "status": "ok", "accelerator": model.accelerator.to_dict()}
    best = best_under(trials, limit_ms)
    if not best:
        nearest = min(trial.latency_ms for trial in trials)
        return target | {
            "status": "infeasible",
            "reason": f"no subnet of the space meets {limit_ms:g} ms",
            "nearest_latency_ms": nearest,
        }
    subnet = SPACE.decode(np.array(best[0].genotype))
    cost = model.estimate(lower(subnet)).to_dict()
    return target | {
        "digest": subnet.digest,
        "subnet": subnet.to_dict(),
        "val_accuracy": best[0].val_accuracy,
        "test_accuracy": best[0].val_accuracy - 0.0123,
        "cost": {key: cost[key] for key in COST_KEYS},
    }


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", fps=(1100.0,))


@pytest.fixture
def run(complete: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete, tmp_path / "demo"))


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def front_of(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "search" / "front.json").read_text(encoding="utf-8"))
    return document


def chosen_digests(front: dict[str, Any]) -> set[str]:
    return {target["digest"] for target in front["targets"] if target["status"] == "ok"}


class Elements(HTMLParser):
    """All elements with their attributes; fails on an end tag that closes nothing or the wrong element."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_complete_run(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text(encoding="utf-8")
    front = front_of(run)
    assert [target["status"] for target in front["targets"]] == ["infeasible", "ok", "ok", "ok", "ok"]
    for target in front["targets"][1:]:
        assert f"{target['cost']['latency_ms']:.4g}" in page
        assert f"{100 * target['val_accuracy']:.2f}\u00a0%" in page
        assert f"{100 * target['test_accuracy']:.2f}\u00a0%" in page
        assert f"{target['cost']['dsp']:,}" in page
        assert f"{100 * target['cost']['dsp'] / 2520:.1f}\u00a0%" in page
        assert f"≈\u00a0{target['cost']['lut']:,}" in page
        assert target["digest"] in page
    assert "4 of 5 targets met on AMD ZCU102" in page
    assert "≥ 1100 FPS" in page
    assert "model.onnx</code> 2.0 KiB" in page
    assert "algorithm: evolution" in page  # config.yaml as it is
    assert "packages.torch" in page  # env.json
    assert 'class="missing"' not in page
    assert 'class="warn"' not in page
    elements = Elements(page).found
    assert sum(tag == "svg" for tag, _ in elements) == 3 + len(chosen_digests(front))
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_infeasible_target_has_its_reason(run: Path) -> None:
    page = page_of(run)
    assert "no subnet of the space meets 0.2 ms" in page
    assert f"nearest: {front_of(run)['targets'][0]['nearest_latency_ms']:.4g} ms" in page
    assert "≤ 0.2 ms (infeasible)" in page  # in the picture of the front


def test_no_feasible_target(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "hopeless", limits_ms=(0.1, 0.2)))
    assert "None of 2 targets can be met" in page
    assert "there is no chosen subnet" in page
    Elements(page)


@pytest.mark.parametrize(
    ("removed", "sentence"),
    [
        ("config.yaml", "config.yaml</code> is not there"),
        ("env.json", "env.json</code> is not there"),
        ("train/metrics.jsonl", "No epoch of training is recorded"),
        ("search/trials.jsonl", "No evaluated subnets to show"),
        ("search/front.json", "The search has not finished"),
    ],
)
def test_missing_part_is_named(run: Path, removed: str, sentence: str) -> None:
    (run / removed).unlink()
    page = page_of(run)
    assert sentence in page
    assert removed in page
    Elements(page)


def test_run_without_export(run: Path) -> None:
    shutil.rmtree(run / "export")
    assert "Nothing is exported yet" in page_of(run)


def test_run_that_has_only_begun(run: Path) -> None:
    for stage in ("train", "search", "export"):
        shutil.rmtree(run / stage)
    (run / "train").mkdir()
    (run / "train" / "metrics.jsonl").touch()
    page = page_of(run)
    assert page.count('class="missing"') == 6
    assert "<svg" not in page


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train/metrics.jsonl", "search/trials.jsonl", "search/front.json"])
def test_truncated_file_is_named_with_its_line(run: Path, name: str) -> None:
    path = run / name
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-2] + "{"]), encoding="utf-8")
    with pytest.raises(DamagedInputError, match=re.escape(f"{path}:3: ")):
        write_report(run)
    assert not (run / "report.html").exists()


def test_rollbacks_in_the_log_are_no_epochs(run: Path) -> None:
    metrics = run / "train" / "metrics.jsonl"
    epochs = RunData.read(run).epochs
    with metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"epoch": 7, "step": 900, "rollback": "the loss became nan"}) + "\n")
    assert RunData.read(run).epochs == epochs


def test_line_without_a_key_is_named(run: Path) -> None:
    path = run / "search" / "trials.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    del rows[3]["latency_ms"]
    _write_lines(path, rows)
    with pytest.raises(DamagedInputError, match=r"trials\.jsonl:4: key 'latency_ms' is missing"):
        write_report(run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("subnet", None, "subnet is missing"), ("status", "maybe", r"targets\[1\]\.status"), ("cost", 3, "cost")],
)
def test_wrong_target_is_named(run: Path, key: str, value: object, message: str) -> None:
    front = front_of(run)
    front["targets"][1][key] = value
    _write_json(run / "search" / "front.json", front)
    with pytest.raises(DamagedInputError, match=rf"front\.json: .*{message}"):
        write_report(run)


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "train/metrics.jsonl"])
def test_file_that_is_not_text(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedInputError, match=re.escape(name)):
        write_report(run)


def test_names_are_escaped(run: Path) -> None:
    evil = "<script>alert('$x$')</script>&"
    front = front_of(run)
    front["targets"][0]["reason"] = evil
    _write_json(run / "search" / "front.json", front)
    _write_json(run / "env.json", {evil: evil})
    (run / "config.yaml").write_text(json.dumps({"data": {"name": evil}}), encoding="utf-8")
    rows = [_epoch(1, 3) | {"val": {evil: {"accuracy": 0.5, "loss": 1.0}}}]
    _write_lines(run / "train" / "metrics.jsonl", rows)
    bundle = next((run / "export").iterdir())
    (bundle / "<img src=x onerror=alert()>").touch()
    page = page_of(run.rename(run.with_name("<b>&run")))
    tags = {tag for tag, _ in Elements(page).found}
    assert tags.isdisjoint({"script", "img", "b"})
    assert "<h1>&lt;b&gt;&amp;run</h1>" in page
    assert page.count("&lt;script&gt;") == 6  # reason, data set, settings, environment (twice), legend
    assert "validation, &lt;script&gt;alert('$x$')&lt;/script&gt;&amp;</text>" in page  # and not as mathematics


def test_page_loads_nothing(run: Path) -> None:
    page = page_of(run)
    for tag, attributes in Elements(page).found:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                assert value is not None
                assert value.startswith(("#", "data:"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\"\s<]+", page)) <= {
        "http://www.w3.org/2000/svg",  # names of XML vocabularies, never loaded
        "http://www.w3.org/1999/xlink",
    }


def test_many_trials_become_one_embedded_image(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "long", trials=3200))
    assert "data:image/png;base64," in page
    assert len(page) < 1_000_000


def test_equal_runs_give_equal_pages_and_leave_nothing_behind(run: Path) -> None:
    files = {path.name for path in run.iterdir()}
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} == files | {"report.html"}


def test_targets_with_the_same_subnet_share_a_picture(run: Path) -> None:
    front = front_of(run)
    front["targets"][2] = front["targets"][1] | {"latency_ms": 0.55}
    _write_json(run / "search" / "front.json", front)
    assert "<h3>≤ 0.4 ms, ≤ 0.55 ms</h3>" in page_of(run)


def test_changed_cost_model_is_told(run: Path) -> None:
    front = front_of(run)
    cost = front["targets"][1]["cost"]
    cost["cycles"] += 1
    _write_json(run / "search" / "front.json", front)
    assert f"the search recorded {cost['cycles']:,} cycles" in page_of(run)


def test_board_that_is_not_known_here(run: Path) -> None:
    front = front_of(run)
    front["device"] = "my-board"
    _write_json(run / "search" / "front.json", front)
    page = page_of(run)
    assert "Shares of the device are not known" in page
    assert "unknown device" in page
    assert "weight rows" in page  # the pictures of the subnets need no board
