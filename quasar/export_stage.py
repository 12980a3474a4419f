"""The third stage of a run: a bundle for the subnet that the search chose for each target, or for any other subnet."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import DamagedInputError, UsageError
from quasar.config import RunConfig
from quasar.export.formats.base import Format
from quasar.export.formats.registry import FORMATS, choose_formats, unknown_operator
from quasar.export.source import BundleInfo
from quasar.export.write import write_bundle
from quasar.finetune_stage import finetuned
from quasar.pipeline import calibration_images, check_same_images, load_supernet, open_test_split
from quasar.progress import stage
from quasar.run_folder import RunFolder
from quasar.run_subnets import SUBNET_SUFFIXES, feasible_targets, named_subnet
from quasar.targets import build_cost_model
from supernet.data.splits import Split
from supernet.evaluate import evaluate
from supernet.integer_vit import check_integer_form
from supernet.lowering import lower
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet


def named_formats(given: Sequence[str] | None) -> tuple[Format, ...] | None:
    """The forms that `--format` names, each time one or several by commas; None for the default of `write_bundle`."""
    return None if given is None else choose_formats([name.strip() for text in given for name in text.split(",")])


def not_exported(run: RunFolder) -> dict[str, str]:
    """Why a target's subnet cannot be exported, by the targets' folder names; empty where all can be.

    Bundles are for FPGA boards, and for networks whose integer arithmetic is known.
    """
    reasons = {}
    for name, target in feasible_targets(run).items():
        try:
            load_device(run.read_front()["device"])
            check_integer_form(Subnet.from_dict(target["subnet"], source=str(run.front)))
        except UsageError as error:
            reasons[name] = str(error)
    return reasons


def export_stage(
    run: RunFolder,
    config: RunConfig,
    splits: tuple[Split, Split],
    *,
    formats: Sequence[Format] | None = None,
    overwrite: bool,
) -> dict[str, Path]:
    """Writes a bundle for the chosen subnet of each feasible target; gives the folders by the targets' folder names.

    Targets whose subnets cannot be exported are left out, and stderr says why.

    Raises:
        UsageError: a bundle exists and is not to be overwritten, a subnet has no form of `formats`, or none can be
            exported.
        DamagedInputError: `front.json` is of another supernet, or damaged.
    """
    run.read_front()  # raises where there is none
    targets, reasons = feasible_targets(run), not_exported(run)
    if reasons.keys() == targets.keys():
        raise UsageError(next(iter(reasons.values()), f"{run.front}: no target is feasible; search again"))
    for name, reason in reasons.items():
        print(f"warning: {name} is not exported: {reason}", file=sys.stderr)
        del targets[name]
    exporter = _Exporter(run, config, splits, formats, overwrite=overwrite)
    bundles: dict[str, Path] = {}
    with stage("export") as progress:
        for name, target in targets.items():
            progress(len(bundles), len(targets), name)
            bundles[name] = exporter.export(Subnet.from_dict(target["subnet"], source=str(run.front)), name, target)
        progress(len(bundles), len(targets), "")
    return bundles


def export_subnet(
    run: RunFolder,
    config: RunConfig,
    splits: tuple[Split, Split],
    *,
    subnet: str,
    name: str | None = None,
    formats: Sequence[Format] | None = None,
    overwrite: bool,
) -> Path:
    """Writes a bundle for one subnet of the space, and gives its folder.

    A target's subnet keeps the accelerator and the accuracies that the search found. Any other gets the accelerator
    that the run's settings mean for it; its accuracy is measured on the validation images, and not on the test images.

    Args:
        subnet: see `quasar.run_subnets.named_subnet`.
        name: of the folder; by default that of the subnet, or its file's without the ending.

    Raises:
        UsageError: there is no such subnet, the bundle exists and is not to be overwritten, or the subnet has no form
            of `formats`.
        DamagedInputError: a file is damaged.
        InfeasibleError: no accelerator that the settings allow fits the device.
    """
    chosen = named_subnet(run, subnet)
    folder = Path(subnet).stem if name is None and Path(subnet).suffix in SUBNET_SUFFIXES else name or subnet
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", folder):
        raise UsageError(f"'{folder}' cannot be the name of a bundle; give letters, digits, '-', '_' and '.' as --name")
    target = feasible_targets(run).get(subnet)
    if target is None and folder in feasible_targets(run):
        raise UsageError(f"'{folder}' is the bundle of a target; give another --name")
    with stage("export") as progress:
        progress(0, 1, folder)
        bundle = _Exporter(run, config, splits, formats, overwrite=overwrite).export(chosen, folder, target)
        progress(1, 1, "")
    return bundle


class _Exporter:
    """Writes bundles of subnets of one run.

    A subnet that was fine-tuned, and gained by it, is exported so, with the accuracies that it has then.
    """

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        splits: tuple[Split, Split],
        formats: Sequence[Format] | None,
        *,
        overwrite: bool,
    ) -> None:
        self._run, self._config, self._formats, self._overwrite = run, config, formats, overwrite
        self._train, self._val = splits
        self._supernet, self._checkpoint = load_supernet(run, config)
        check_same_images(self._train, self._checkpoint, run)
        self._test_digest = open_test_split(config).digest
        self._images = calibration_images(self._train)

    def export(self, subnet: Subnet, name: str, target: dict[str, Any] | None) -> Path:
        """Writes the bundle of this name; `target` is that of `front.json` for which the subnet was chosen."""
        config, train = self._config, self._train
        device, accelerator = self._hardware(subnet, name, target)
        module, val_accuracy, test_accuracy = self._network(subnet, target)
        if self._formats is None:
            for form in FORMATS.values():
                if reason := unknown_operator(form, subnet):
                    print(f"{name}: without the form '{form.name}', which is {reason}", file=sys.stderr)
        return write_bundle(
            module,
            self._run.export / name,
            overwrite=self._overwrite,
            images=self._images,
            formats=self._formats,
            info=BundleInfo(
                latency_ms=target["latency_ms"] if target and not target["fps"] else None,
                fps=target["fps"] if target else None,
                device=_device_reference(device),
                cost=FpgaCostModel(load_device(device), accelerator).estimate(lower(subnet)),
                accelerator=accelerator,
                data=config.data,
                mean=train.normalization.mean,
                std=train.normalization.std,
                classes=train.classes,
                training_image_size=config.space.image_size[-1],
                checkpoint_digest=self._checkpoint.digest,
                data_digests={"train": train.digest, "val": self._val.digest, "test": self._test_digest},
                val_accuracy=val_accuracy,
                test_accuracy=test_accuracy,
            ),
        )

    def _hardware(self, subnet: Subnet, name: str, target: dict[str, Any] | None) -> tuple[str, AcceleratorConfig]:
        """Device and accelerator: the target's, else the one that all targets share, else the best for the subnet."""
        run, settings = self._run, self._config.hardware
        if target is None and settings.accelerator == "shared":
            target = next(iter(feasible_targets(run).values()), None)
        device = settings.device if target is None else run.read_front()["device"]
        load_device(device)  # says so where it is no FPGA board: bundles are for those
        if target is None:
            accelerator = build_cost_model(self._config).accelerator_for(lower(subnet))
            assert accelerator is not None
            return device, accelerator
        if target["accelerator"] is None:
            raise DamagedInputError(f"{run.front}: the target {name} has no accelerator; search again")
        return device, AcceleratorConfig.from_dict(target["accelerator"])

    def _network(self, subnet: Subnet, target: dict[str, Any] | None) -> tuple[SubnetViT, float, float | None]:
        """The extracted subnet, and its accuracies on the validation and the test images, if that was measured."""
        trained_further = finetuned(self._run, self._checkpoint, subnet)
        if trained_further is not None:
            module, record = trained_further
            return module, record.val_after, record.test_accuracy
        module = extract(self._supernet, subnet)
        if target is not None:
            return module.cpu(), target["val_accuracy"], target["test_accuracy"]
        val = evaluate(module, self._val, batch_size=self._config.search.batch_size)
        return module.cpu(), val.accuracy, None


def _device_reference(device: str) -> str:
    """A device as a bundle names it: its name, or its file wherever the bundle will be read on this machine."""
    return str(Path(device).absolute()) if Path(device).suffix in (".yaml", ".yml") else device
