"""What a path holds, measured: the accuracy of a run's subnet or of a bundle, and a bundle against its source."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hwmodel.errors import UsageError
from quasar import pipeline
from quasar.config import CONFIG_FILE
from quasar.export.bundle import Bundle, load_bundle
from quasar.export.manifest import MANIFEST
from quasar.export.verify import verify_bundle
from quasar.progress import stage
from quasar.run_folder import RunFolder
from quasar.run_subnets import feasible_targets, known_names, named_subnet
from supernet.data.splits import Split, open_test, open_train
from supernet.evaluate import evaluate
from supernet.standalone import extract


def evaluate_path(path: Path, *, subnet: str | None, split: str) -> dict[str, Any]:
    """Accuracy and loss on the validation or test split.

    Args:
        path: a run folder, whose subnet `subnet` is extracted from the supernet, or a bundle.
        subnet: of a run: "max", "min", the folder name of a target, or a subnet file.
        split: "val" or "test".
    """
    if _is_bundle(path):
        if subnet is not None:
            raise UsageError(f"--subnet is for run folders; {path} is a bundle with one subnet")
        bundle = load_bundle(path)
        label, module, images = path.name, bundle.module(), _bundle_split(bundle, split)
    else:
        run = _run(path)
        config = run.config()
        if subnet is None:
            raise UsageError(f"{path} is a run folder: say which subnet with --subnet ({', '.join(known_names(run))})")
        label, chosen = subnet, named_subnet(run, subnet)
        supernet, checkpoint = pipeline.load_supernet(run, config)
        module = extract(supernet, chosen)
        train_split, images = pipeline.open_splits(config)
        pipeline.check_same_images(train_split, checkpoint, run)
        if split == "test":
            images = pipeline.open_test_split(config)
    result = evaluate(module, images, batch_size=256)
    return {"subnet": label, "digest": module.subnet.digest, "split": split, **asdict(result)}


def verify_path(path: Path, *, rtl: bool = False) -> dict[str, dict[str, Any]]:
    """Verifies a bundle, or all bundles of a run, on the RTL too if wanted; one report for each folder name."""
    if _is_bundle(path):
        folders = [path]
    else:
        run = _run(path)
        folders = _exported(run)
        if not folders:
            raise UsageError(f"{path}: has no exported bundles; run `quasar export {path}` first")
    reports = {}
    for folder in folders:
        bundle = load_bundle(folder)
        with stage(f"verify {folder.name}") as progress:
            report = verify_bundle(bundle, _bundle_split(bundle, "test"), simulate=rtl, progress=progress)
        reports[folder.name] = report.to_dict()
    return reports


def _is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _run(path: Path) -> RunFolder:
    if not (path / CONFIG_FILE).is_file():
        raise UsageError(f"{path}: is neither a run folder (no {CONFIG_FILE}) nor a bundle (no {MANIFEST})")
    return RunFolder(path)


def _exported(run: RunFolder) -> list[Path]:
    """The bundles of a run, those of its targets first; a folder whose name starts with a dot is of a killed export."""
    found = {item.name: item for item in sorted(run.export.glob("*")) if item.is_dir() and item.name[0] != "."}
    of_targets = [name for name in feasible_targets(run) if name in found]
    return [found[name] for name in dict.fromkeys((*of_targets, *found))]


def _bundle_split(bundle: Bundle, split: str) -> Split:
    """The split that the bundle was measured on; raises `UsageError` if the data set has changed since."""
    data, size = bundle.config.data, bundle.config.training_image_size
    images = open_test(data, image_size=size) if split == "test" else open_train(data, image_size=size, seed=0)[1]
    if images.digest != bundle.manifest.data_digests.get(split):
        raise UsageError(
            f"{bundle.folder}: the {split} images of '{data.name}' are not those that the bundle was measured on; "
            "restore the data set, or export again"
        )
    return images
