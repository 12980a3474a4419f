"""The profile of what a command is given: a subnet file, a bundle, a subnet of a run, or any model of timm."""

from __future__ import annotations

from pathlib import Path

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.device import Device, load_hardware
from hwmodel.errors import UsageError
from hwmodel.explore import best_accelerator
from hwmodel.workload import Workload
from quasar.hw_inputs import read_accelerator, workload_of
from quasar.profiling.rows import Profile
from quasar.profiling.workload import profile_on_board, profile_on_processor
from quasar.run_folder import RunFolder
from quasar.run_subnets import known_names, named_subnet
from supernet.lowering import lower


def profile_network(what: str, *, subnet: str | None, device: str | None, ratio: float) -> Profile:
    """The profile of one network on one device.

    Args:
        what: a subnet file, a bundle, a run, or the name of a model of timm.
        subnet: of a run, which one.
        device: name or file; by default that of the bundle or run, else zcu102. A bundle on its own device keeps its
            accelerator; all else gets the fastest one for the network.
        ratio: of a plain ViT of timm, the share of rows at 8 bits.

    Raises:
        UsageError: there is no such network, subnet or device, or the two do not go together.
    """
    path = Path(what)
    accelerator = None
    if (path / "config.yaml").is_file():
        if ratio != 1:
            raise UsageError(f"--ratio is for networks without row precisions, and those of {path} have them")
        workload, own_device = _of_run(RunFolder(path), subnet)
    elif subnet is not None:
        raise UsageError(f"--subnet is for run folders, and '{what}' is none (it has no config.yaml)")
    else:
        own_device = "zcu102"
        if device is None and (path / "cost.json").is_file():
            own_device, accelerator = read_accelerator(path / "cost.json")
        if _is_model(what) and not _is_known(what):
            from quasar.profiling.aten import profile_operators

            if ratio != 1:
                raise UsageError(f"--ratio is about the weight rows of plain Vision Transformers, and '{what}' is none")
            return profile_operators(what, load_hardware(device or own_device))
        workload = workload_of(what, ratio)
    target = load_hardware(device or own_device)
    name = f"{what} {subnet}" if subnet else what
    if isinstance(target, Device):
        return profile_on_board(workload, target, accelerator or _accelerator(workload, target), network=name)
    return profile_on_processor(workload, target, network=name)


def _of_run(run: RunFolder, subnet: str | None) -> tuple[Workload, str]:
    """A subnet of a run, and the device that the run is for."""
    device = run.config().hardware.device
    if subnet is None:
        raise UsageError(f"{run.path} is a run folder: say which subnet with --subnet ({', '.join(known_names(run))})")
    return lower(named_subnet(run, subnet)), device


def _accelerator(workload: Workload, device: Device) -> AcceleratorConfig:
    return best_accelerator([workload], device, clock_mhz=None, backend=None, array=None, activations="onchip")


def _is_model(what: str) -> bool:
    """Whether this names a model of timm, rather than a file or folder."""
    if Path(what).exists() or Path(what).suffix in (".yaml", ".yml", ".json"):
        return False
    import timm

    return bool(timm.is_model(what))


def _is_known(model: str) -> bool:
    """Whether the hardware model can describe the workload of this model of timm."""
    try:
        workload_of(model, 1.0)
    except UsageError:
        return False
    return True
