"""The subnets of a run by name: the largest and the smallest, those that the search chose, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.errors import UsageError
from hwmodel.registry import unknown_name
from quasar.run_folder import RunFolder
from supernet.evaluate import probe_subnets
from supernet.subnet import Subnet

#: of a subnet file
SUBNET_SUFFIXES = (".yaml", ".yml", ".json")


def target_folder(target: dict[str, Any]) -> str:
    """The folder name of a target of `front.json`: "latency-0.2ms" or "fps-5000"."""
    if target["fps"] is None:
        return f"latency-{np.format_float_positional(target['latency_ms'], trim='-')}ms"
    return f"fps-{np.format_float_positional(target['fps'], trim='-')}"


def feasible_targets(run: RunFolder) -> dict[str, dict[str, Any]]:
    """The targets of `front.json` that a subnet meets, by their folder names; none before the search."""
    if not run.front.exists():
        return {}
    return {target_folder(target): target for target in run.read_front()["targets"] if target["status"] == "ok"}


def known_names(run: RunFolder) -> list[str]:
    """What a user can call a subnet of a run, for messages."""
    return ["max", "min", *feasible_targets(run), "a subnet file"]


def named_subnet(run: RunFolder, name: str) -> Subnet:
    """The subnet of that name: "max", "min", the folder name of a target, or a subnet file.

    Raises:
        UsageError: there is none, or the space of the run does not hold it.
        DamagedInputError: the file is no subnet.
    """
    space = run.config().space
    if Path(name).suffix not in SUBNET_SUFFIXES:
        known = probe_subnets(space) | {
            folder: Subnet.from_dict(target["subnet"], source=str(run.front))
            for folder, target in feasible_targets(run).items()
        }
        if name not in known:
            unknown, devices = unknown_name("subnet", name, known), run.of_devices().values()
            if devices:
                unknown = UsageError(f"{unknown}; those of devices are in {', '.join(str(f.path) for f in devices)}")
            raise unknown
        return known[name]
    subnet = Subnet.load(Path(name))
    try:
        space.encode(subnet)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    return subnet
