"""Searches of one supernet for several devices, each with a folder, targets and a front of its own.

`RUN/devices/<device>` is a run folder without a supernet (`quasar.run_folder`): all commands that take a run take it,
too. The searches run one after the other, and share the supernet, the images and all that was measured.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.files import write_atomic
from quasar import figures
from quasar.config import RunConfig, changed_settings
from quasar.device_config import OWN_KEYS
from quasar.pipeline import check_names, open_splits
from quasar.run_folder import DEVICES, ENVIRONMENT_FILE, RunFolder, environment
from quasar.search_stage import any_feasible, check_search, search_stages
from quasar.targets import check_targets


def search_devices(
    run: RunFolder, configs: Mapping[str, RunConfig], *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Searches the supernet of a run for each device; gives `front.json` of each, and the picture of all fronts.

    All is checked before anything is searched or removed. A killed call is continued as any search is.

    Args:
        configs: the settings by the name of the device, see `quasar.device_config`.

    Raises:
        UsageError: a device has been searched and no flag says what to do, or settings do not go together.
        InfeasibleError: no subnet of the space meets any target of a device.
    """
    folders = {name: run.of_device(name) for name in configs}
    for name, config in configs.items():
        check_names(config)
        check_search(folders[name], config, resume=resume, overwrite=overwrite)
        _check_alike(configs, name)
    for name, config in configs.items():
        if not (resume and folders[name].journal.exists()):
            check_targets(config, device=name)
    splits = open_splits(next(iter(configs.values())))
    for folder in folders.values():
        write_atomic(folder.path / ENVIRONMENT_FILE, json.dumps(environment(), indent=2) + "\n")
    searches = {f"search {name}": (folders[name], config, overwrite) for name, config in configs.items()}
    fronts = dict(zip(configs, search_stages(searches, splits), strict=True))
    for name, front in fronts.items():
        if not any_feasible(front):
            print(f"warning: {name}: no target is feasible: {front['targets'][0]['reason']}", file=sys.stderr)
    if not any(any_feasible(front) for front in fronts.values()):
        raise InfeasibleError(f"no target of any device is feasible; {run.path / DEVICES} says why")
    picture = run.path / DEVICES / "fronts.png"
    _write_picture(picture, fronts, kl=next(iter(configs.values())).search.signal == "kl")
    return {
        "run": str(run.path),
        "picture": str(picture),
        "folders": {name: str(folder.path) for name, folder in folders.items()},
        "devices": fronts,
    }


def _check_alike(configs: Mapping[str, RunConfig], name: str) -> None:
    """Raises `UsageError` if a device is to be searched in another way than the first one."""
    first = next(iter(configs))
    free = (*OWN_KEYS, "search.study", "name", "output_dir")
    changed = [key for key in changed_settings(configs[first], configs[name]) if not key.startswith(free)]
    if changed:
        raise UsageError(
            f"{changed[0]} of the search for {name} differs from that for {first}; search them one after the other, or "
            "use --overwrite"
        )


def _write_picture(path: Path, fronts: Mapping[str, Mapping[str, Any]], *, kl: bool) -> None:
    score = "val_kl" if kl else "val_accuracy"
    points = {
        name: [(trial["latency_ms"], trial[score]) for trial in front["pareto"]] for name, front in fronts.items()
    }
    curves = {name: front["hypervolume_curve"] for name, front in fronts.items()}
    png = io.BytesIO()
    figures.fronts_figure(points, curves, kl=kl).savefig(png, format="png", dpi=150, facecolor="white")
    write_atomic(path, png.getvalue())
