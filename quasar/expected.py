"""What a search expects of row precisions before it measures anything, kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hwmodel.errors import DamagedInputError
from hwmodel.files import write_atomic
from quasar.config import RunConfig
from quasar.progress import stage
from quasar.run_folder import RunFolder
from search.algorithm import FloatArray
from supernet.data.splits import Split
from supernet.fisher import expected_divergence
from supernet.vit import SupernetViT

#: images at once; their gradients are taken one by one
_BATCH = 25


def expected_of_rows(run: RunFolder, config: RunConfig, supernet: SupernetViT, split: Split) -> FloatArray:
    """What `SearchProblem.expected_divergence` is for a run, (G, C).

    It takes a backward pass for each of `supernet.calibration_images` training images, once for a search: a resumed one
    reads what the first one wrote.

    Args:
        split: the training split.

    Raises:
        DamagedInputError: the file of an earlier call cannot be read.
    """
    path = run.journal.with_name("expected.json")
    names = config.space.gene_names
    if path.exists():
        return _read(path.read_text(encoding="utf-8"), config, source=str(path))
    images = min(config.supernet.calibration_images, len(split))
    with stage("rows") as progress:

        def batches() -> Iterator[Tensor]:
            done = 0
            for x_BCHW, _ in split.batches(_BATCH, device=supernet.cls_token.device, limit=images):
                yield x_BCHW
                done += len(x_BCHW)
                progress(done, images, "")

        generator = torch.Generator().manual_seed(config.seed)
        nats = expected_divergence(supernet, batches(), generator=generator)
    rows = {name: row.tolist() for name, row in zip(names, nats, strict=True) if row.any()}
    document = {"high_precision_ratio": config.space.high_precision_ratio, "nats": rows}
    write_atomic(path, json.dumps(document, indent=2) + "\n")
    return nats


def _read(text: str, config: RunConfig, *, source: str) -> FloatArray:
    names, choices = config.space.gene_names, len(config.space.high_precision_ratio)
    nats = np.zeros((len(names), choices))
    try:
        for name, row in json.loads(text)["nats"].items():
            nats[names.index(name)] = row
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedInputError(
            f"{source}: is not what a search expects of rows ({type(error).__name__}: {error}); remove it"
        ) from None
    return nats
