"""The folder of a study, `<output_dir>/<name>-scale`: who may write into it, and whether it holds the same study."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwmodel.errors import UsageError
from hwmodel.files import write_atomic
from quasar.config import PLACE_KEYS, differing_keys
from quasar.run_folder import RunFolder
from quasar.scaling.plan import Study, load_study

#: all that a study writes; --overwrite removes these and nothing else
FILES = ("train", "inherited.jsonl", "trainings.jsonl", "scale.json", "candidates.csv", "scale.png", "scale.yaml")


@contextmanager
def open_folder(study: Study, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The folder of a study, locked and ready: new, continued, or cleared. Refuses as `open_run` does."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    folder = study.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; choose another name or output_dir")
    found = {item.name for item in folder.iterdir() if item.name[0] != "."} if folder.exists() else set()
    if found and "scale.yaml" not in found:
        raise UsageError(
            f"{folder}: is not the folder of a study but holds files ({min(found)}, …); choose another name with name=…"
        )
    with RunFolder(folder).locked():
        if found and not overwrite:
            if not resume:
                raise UsageError(
                    f"{folder}: holds a study already; continue it with --resume, replace it with --overwrite, or "
                    "choose another name with name=…"
                )
            _check_same(folder, study)
        if overwrite:
            for name in FILES:
                _remove(folder / name)
        write_atomic(folder / "scale.yaml", study.to_yaml())
        yield folder


def _check_same(folder: Path, study: Study) -> None:
    """Raises `UsageError` if the study in `folder` differs in more than where and on what it computes."""
    earlier = load_study(folder / "scale.yaml")
    ours, theirs = (
        study.config,
        dataclasses.replace(earlier.config, name=study.config.name, output_dir=study.config.output_dir),
    )
    changed = [key for key in differing_keys(ours, theirs) if key not in PLACE_KEYS and not key.startswith("search.")]
    mine, other = dataclasses.asdict(study.plan), dataclasses.asdict(earlier.plan)
    changed += [f"scale.{key}" for key in mine if mine[key] != other[key]]
    if changed:
        raise UsageError(
            f"{folder}: cannot resume: {changed[0]} differs{f', and {len(changed) - 1} more' * (len(changed) > 1)}; "
            "restore it, choose another name with name=…, or use --overwrite"
        )


def _remove(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    elif item.exists():
        item.unlink()
