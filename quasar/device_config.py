"""The settings of searches for several devices: those of a run, with what differs from one device to the next.

An override `DEVICE:key=value` holds for one device. Targets may be given as quantiles of the latencies that random
subnets have, which mean something on any device, however fast. Torch-free, so that a profile answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from hwmodel.device import Device, load_hardware
from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.registry import unknown_name
from quasar.config import CONFIG_FILE, RunConfig, load_config
from quasar.run_folder import RunFolder
from quasar.targets import build_cost_model
from search.config import HardwareConfig
from search.limits import costs_function

#: settings that may differ between devices; all others say how subnets are measured and found
OWN_KEYS = ("hardware.", "search.targets", "search.limits")
#: limits of accelerators, which other devices do not have
_RESOURCES = ("dsp", "bram18", "lut")
_SAMPLE = 4000


def device_configs(
    path: Path, devices: str, overrides: Sequence[str], *, quantiles: str | None = None, resume: bool = False
) -> dict[str, RunConfig]:
    """The settings for each of several devices, by the names that the devices have.

    What the configuration says about accelerators holds for boards; a CPU or GPU is spared it.

    Args:
        path: a run folder or a configuration file.
        devices: names of devices and device files, by commas.
        overrides: of all devices, and of one where `DEVICE:` stands before the key.
        quantiles: shares of random subnets by commas; the targets of each device are the latencies that so many meet.
        resume: begin with the settings of a device's own folder, where there is one.

    Raises:
        UsageError: an unknown device or one given twice, or what `load_config` and `build_cost_model` raise it for.
        InfeasibleError: no accelerator fits a device, or nothing of the space is within the limits.
    """
    named = named_devices(devices, option="--devices")
    common, own = _by_device(overrides, named)
    shares = None if quantiles is None else _shares(quantiles)
    if shares is not None and any(override.startswith("search.targets=") for override in common):
        raise UsageError("--quantiles and search.targets both say what all devices are to reach; give one of them")
    configs = {}
    for name, (given, device) in named.items():
        folder = RunFolder(path).of_device(name).path
        source = folder if resume and (folder / CONFIG_FILE).is_file() else path
        settings = [*common, f"hardware.device={json.dumps(given)}"]
        if not isinstance(device, Device):
            settings += [f"hardware.{key}={json.dumps(value)}" for key, value in _no_accelerator().items()]
            settings += [f"search.limits.{key}=null" for key in _RESOURCES]
        settings += own[name]
        config = load_config(source, settings)
        if shares is not None and not any(override.startswith("search.targets=") for override in own[name]):
            limits = [{"latency_ms": limit} for limit in _quantiles(config, shares, name)]
            config = load_config(source, [*settings, f"search.targets={json.dumps(limits)}"])
        configs[name] = _in_folder(config, path, name)
    return configs


def named_devices(devices: str, *, option: str) -> dict[str, tuple[str, object]]:
    """Devices by their own names, each with what it was called and what it is.

    Args:
        devices: names and device files, by commas.
        option: what the user calls the list.

    Raises:
        UsageError: none, an unknown one, or two of the same name.
        DamagedInputError: a device file is damaged.
    """
    named: dict[str, tuple[str, object]] = {}
    for given in filter(None, (part.strip() for part in devices.split(","))):
        try:
            device = load_hardware(given)
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from error
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]*", device.name):
            raise UsageError(f"{option}: {given}: the name '{device.name}' cannot be that of a folder; change it")
        if device.name in named:
            raise UsageError(f"{option}: {given} is named {device.name}, as {named[device.name][0]} is; give each once")
        named[device.name] = given, device
    if not named:
        raise UsageError(f"{option}: give names of devices by commas, such as zcu102,jetson_tx2")
    return named


def _by_device(overrides: Sequence[str], devices: Mapping[str, object]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides for all devices, and those for each."""
    common: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in devices}
    for override in overrides:
        key, equals, value = override.partition("=")
        name, colon, key = key.rpartition(":")
        if key in ("hardware.device", "name", "output_dir"):
            raise UsageError(f"override '{override}': devices and their folders are those of --devices; leave it out")
        if not colon:
            common.append(override)
        elif name not in own:
            raise unknown_name("device of --devices", name, own)
        elif not key.startswith(OWN_KEYS):
            raise UsageError(
                f"override '{override}': only hardware.*, search.targets and search.limits can differ between devices; "
                f"give {key}={value} for all"
            )
        else:
            own[name].append(f"{key}{equals}{value}")
    return common, own


def _no_accelerator() -> dict[str, object]:
    """What `hardware` has for a device that is no board: the defaults of all settings of accelerators."""
    return {field.name: field.default for field in fields(HardwareConfig) if field.name != "device"}


def _shares(quantiles: str) -> list[float]:
    try:
        shares = [float(part) for part in quantiles.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UsageError(f"--quantiles must be shares in (0, 1] by commas, such as 0.1,0.5, not '{quantiles}'")
    return shares


def _quantiles(config: RunConfig, shares: Sequence[float], device: str) -> list[float]:
    """The latencies in ms, rounded up to four digits, that these shares of random subnets within the limits meet."""
    model = build_cost_model(config)
    sample = config.space.sample(np.random.default_rng(config.seed), _SAMPLE)
    costs = costs_function(config.space, model, config.search.limits)(sample)
    latency_ms = costs.latency_ms[costs.overrun <= 1]
    if not len(latency_ms):
        raise InfeasibleError(f"{device}: none of {_SAMPLE} random subnets keeps to search.limits; give its targets")
    limits = np.quantile(latency_ms, shares, method="higher").tolist()
    steps = [10.0 ** (math.floor(math.log10(limit)) - 3) for limit in limits]
    return [float(f"{math.ceil(limit / step) * step:.4g}") for limit, step in zip(limits, steps, strict=True)]


def _in_folder(config: RunConfig, path: Path, device: str) -> RunConfig:
    """The configuration in the folder of a device; an Optuna study is for one hardware, so each has its own."""
    search = config.search
    if search.study is not None:
        name = search.study.name or RunFolder(path).path.resolve().name
        own_name = name if name.endswith(f"-{device}") else f"{name}-{device}"
        search = dataclasses.replace(search, study=dataclasses.replace(search.study, name=own_name))
    folder = RunFolder(path).of_device(device).path
    return dataclasses.replace(config, search=search, output_dir=str(folder.parent), name=folder.name)
