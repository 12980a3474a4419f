"""`quasar finetune`: further training of the chosen subnets, each by itself, and what that gains.

The supernet and the result of the search stay as they are. A subnet that has gained on the validation split, or lost
nothing, is what `quasar export` takes from then on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import write_atomic
from quasar.config import RunConfig, changed_settings
from quasar.pipeline import check_same_images, load_supernet, open_test_split, set_up_torch
from quasar.progress import stage
from quasar.run_folder import RunFolder
from supernet.alone import finetuning_settings, train_further
from supernet.checkpoint import Checkpoint
from supernet.config import FinetuneConfig
from supernet.data.splits import Split
from supernet.evaluate import evaluate
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet
from supernet.validation import validate


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finetuned:
    """A subnet before and after; top-1 as shares in [0, 1].

    `settings` are those of the training and `checkpoint` the digest of the supernet. The test accuracy is that of the
    fine-tuned weights; it is None, and was not measured, where they are not `kept` because the inherited ones are more
    accurate on the validation split.
    """

    __pydantic_config__ = {"extra": "forbid"}

    digest: str
    checkpoint: str
    settings: dict[str, Any]
    val_before: float
    val_after: float
    test_accuracy: float | None
    kept: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    __pydantic_config__ = {"extra": "forbid"}

    subnets: tuple[Finetuned, ...]


def check_finetuning(run: RunFolder, config: RunConfig) -> None:
    """Raises `UsageError` if anything but `finetune.*` differs from the configuration of the run."""
    fixed = [key for key in changed_settings(config, run.config()) if key.partition(".")[0] != "finetune"]
    if fixed:
        raise UsageError(f"{run.path}: {fixed[0]} is settled by now; only finetune.* can change")


def finetune_stage(run: RunFolder, config: RunConfig, splits: tuple[Split, Split]) -> list[Finetuned]:
    """Trains the chosen subnet of each feasible target further; gives them in the order of the targets.

    Where the configuration has no `finetune`, its defaults hold. What an earlier call has done with the same settings
    is not done again.

    Raises:
        UsageError: there is no result of a search, or the data have changed.
        DamagedInputError: a file of the run is damaged.
        QuasarError: a training diverges.
    """
    front = run.read_front()
    subnets = {
        target["digest"]: Subnet.from_dict(target["subnet"], source=str(run.front))
        for target in front["targets"]
        if target["status"] == "ok"
    }
    train_split, val_split = splits
    _, checkpoint = load_supernet(run, config)
    check_same_images(train_split, checkpoint, run)
    training = finetuning_settings(config.train, config.finetune or FinetuneConfig())
    done = {item.digest: item for item in _read(run)}
    wanted = {"seed": config.seed, **dataclasses.asdict(training)}
    batch_size = config.search.batch_size
    with stage("finetune") as progress:
        for number, (digest, subnet) in enumerate(subnets.items()):
            known = done.get(digest)
            if known and (known.settings, known.checkpoint) == (_plain(wanted), checkpoint.digest):
                continue
            model = checkpoint.build(source=str(run.checkpoint)).to(set_up_torch(config))
            before = evaluate(extract(model, subnet), val_split, batch_size=batch_size)
            module = train_further(
                model,
                subnet,
                config=training,
                train_split=train_split,
                seed=config.seed,
                progress=lambda step, steps, text, number=number: progress(  # type: ignore[misc]
                    number * steps + step, len(subnets) * steps, f"subnet {number + 1} of {len(subnets)}"
                ),
            )
            after = evaluate(module, val_split, batch_size=batch_size)
            kept = (after.accuracy, -after.loss) >= (before.accuracy, -before.loss)
            test = evaluate(module, open_test_split(config), batch_size=batch_size) if kept else None
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
            write_atomic(_weights(run, digest), safetensors.torch.save(state))
            done[digest] = Finetuned(
                digest=digest,
                checkpoint=checkpoint.digest,
                settings=_plain(wanted),
                val_before=before.accuracy,
                val_after=after.accuracy,
                test_accuracy=None if test is None else test.accuracy,
                kept=kept,
            )
            content = {"subnets": [dataclasses.asdict(item) for item in done.values()]}
            write_atomic(run.finetune / "finetune.json", json.dumps(content, indent=2) + "\n")
    return [done[digest] for digest in subnets]


def finetuned(run: RunFolder, checkpoint: Checkpoint, subnet: Subnet) -> tuple[SubnetViT, Finetuned] | None:
    """The fine-tuned network of a subnet of this supernet, on the CPU; None if there is none that was kept.

    Raises:
        DamagedInputError: its files are damaged.
    """
    found = [item for item in _read(run) if (item.digest, item.checkpoint) == (subnet.digest, checkpoint.digest)]
    if not found or not found[0].kept:
        return None
    path = _weights(run, subnet.digest)
    try:
        state = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedInputError(f"{path}: cannot be read as weights ({error}); {_AGAIN}") from None
    module = SubnetViT(subnet, layer_scale=any(name.endswith("scale1") for name in state))
    module.load(state, source=str(path))
    return module.eval(), found[0]


_AGAIN = "remove the folder and fine-tune again"


def _weights(run: RunFolder, digest: str) -> Path:
    return run.finetune / f"{digest}.safetensors"


def _read(run: RunFolder) -> tuple[Finetuned, ...]:
    path = run.finetune / "finetune.json"
    if not path.exists():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedInputError(f"{path}: is no record of fine-tuning ({error}); {_AGAIN}") from None
    return validate(_Document, content, source=str(path), error=DamagedInputError).subnets


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As they are when they have been read again."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain
