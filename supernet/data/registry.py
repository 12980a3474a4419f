"""Data sets by name. A data set is one function from the configuration and a part to that part's samples.

Another package adds one with an entry point of the group `quasar.datasets` that names such a function; in a script,
`@DATASETS.register("my-set")` does. The function must keep the two parts disjoint, give the same classes for both,
and raise `UsageError` or `DamagedInputError` (hwmodel.errors) for what a user can mend.
`tests/contracts/test_datasets.py` checks the rest.
"""

from __future__ import annotations

import importlib
from typing import Literal, Protocol

from hwmodel.registry import Registry
from supernet.data.config import DataConfig
from supernet.data.samples import Samples

Part = Literal["train", "test"]


class Dataset(Protocol):
    """What is registered: a function."""

    def __call__(self, config: DataConfig, part: Part) -> Samples:
        """Loads one part; the train part is what training and validation share."""


DATASETS: Registry[Dataset] = Registry("data set", group="quasar.datasets")


def _deferred(module: str) -> Dataset:
    """The `load` of a module, imported when it is first called: names cost nothing until they are used."""

    def load(config: DataConfig, part: Part) -> Samples:
        dataset: Dataset = importlib.import_module(module).load
        return dataset(config, part)

    return load


for _name, _module in {
    "digits": "supernet.data.digits",
    "cifar10": "supernet.data.cifar10",
    "jpeg-npz": "supernet.data.jpeg_npz",
    "folder": "supernet.data.folder",
    "tar-shards": "supernet.data.tar_shards",
    "timm": "supernet.data.timm_sets",
}.items():
    DATASETS.register(_name)(_deferred(_module))
