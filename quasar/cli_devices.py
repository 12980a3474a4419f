"""What `quasar search` does for several devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwmodel.errors import UsageError


def search_for_devices(
    path: Path,
    devices: str | None,
    overrides: Sequence[str],
    *,
    quantiles: str | None,
    profile: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> dict[str, Any]:
    """`quasar search --devices`, or with `profile` what the space offers on each; `quiet` prints nothing on stdout."""
    if devices is None:
        raise UsageError("--quantiles is for searches with --devices; give the devices by commas")
    from quasar.device_config import device_configs, named_devices
    from quasar.run_folder import RunFolder

    run = RunFolder(path)
    if run.base != run:
        raise UsageError(f"{path}: holds the search of one device; give the run, {run.base.path}, with --devices")
    if not profile:
        run.config()  # says so if this is no run folder
        for name in named_devices(devices, option="--devices"):  # costs of large spaces take a minute to get ready
            folder = run.of_device(name)
            if (folder.front.exists() or folder.journal.exists()) and not (resume or overwrite):
                raise UsageError(
                    f"{folder.path}: has been searched; use --resume to continue, and for devices that are new, or "
                    "--overwrite to search anew"
                )
    configs = device_configs(path, devices, overrides, quantiles=quantiles, resume=resume and not profile)
    if profile:
        return _profiles(configs, quiet=quiet)
    from quasar.device_search import search_devices
    from quasar.device_summary import print_devices

    with run.locked():
        document = search_devices(run, configs, resume=resume, overwrite=overwrite)
    if not quiet:
        print_devices(document)
    return document


def _profiles(configs: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    from quasar.summary import print_profile
    from quasar.targets import profile_targets

    documents = {}
    for name, config in configs.items():
        documents[name] = profile_targets(config)
        if not quiet:
            print_profile(documents[name])
    return {"devices": documents}
