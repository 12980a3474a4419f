"""Several processes ("workers") that train one supernet together, and all that they tell each other.

Every worker holds the whole supernet and takes its share of each batch; before an update, gradients are averaged and
activation ranges united over the workers. All draw the same subnets, so the same parameters have a gradient on each of
them, and all weights stay equal. An update needs two exchanges, whatever the number of its backward passes: hooks as
in torch's DistributedDataParallel would exchange after each pass, and have to find the parameters that it left out.

torchrun or Ray start the processes. All must see the data and the run folder, where the first worker alone writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hwmodel.errors import UsageError, WorkerLostError

#: longest wait of a worker for the others: the first one may be ordering a pretrained network's rows
PATIENCE = timedelta(hours=2)
#: seconds in which a launcher ends the workers beside one that failed
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a training as one of them sees them; by default it is alone.

    All methods that take or give tensors or values must be called by all workers, in the same order. They raise
    `WorkerLostError` if a worker has ended.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this worker is the one that writes files and shows progress."""
        return self.rank == 0

    def check(self, batch_size: int, accumulate: int) -> None:
        """Raises `UsageError` unless a batch divides into equal shares for all workers."""
        if self.count > 1 and batch_size % (2 * self.count * accumulate):
            raise UsageError(
                f"train.batch_size {batch_size} does not divide into pairs of images for {self.count} workers"
                f"{f' and {accumulate} parts each (train.accumulate)' if accumulate > 1 else ''}; "
                f"choose a multiple of {2 * self.count * accumulate}"
            )

    def places(self, batch_size: int) -> Tensor | None:
        """Where this worker's images are in a batch of all workers, int64 (batch_size / count,); None for everywhere.

        With each image comes the one as far from the other end, with which mixup and cutmix mix it.
        """
        if self.count == 1:
            return None
        half = batch_size // (2 * self.count)
        front = torch.arange(self.rank * half, (self.rank + 1) * half)
        return torch.cat([front, batch_size - 1 - front.flip(0)])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over all workers."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._exchange():
            dist.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def maximum(self, tensor: Tensor) -> None:
        """Replaces each element by the largest of all workers."""
        if self.count > 1:
            with self._exchange():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all workers, in their order."""
        values = [value] * self.count
        if self.count > 1:
            with self._exchange():
                dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self.gathered(None)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that torch's backends raise
            if self.rank > 1:  # two others say it, and the launcher ends this one
                time.sleep(GRACE_S)
            raise WorkerLostError(
                f"training: worker {self.rank} of {self.count} has lost the others: one of them has ended, by an error "
                "of its own or by the system (memory?); start again with --resume"
            ) from error


#: a training in this process alone
ALONE = Workers()


@contextmanager
def joined(device: torch.device) -> Iterator[Workers]:
    """The workers that torchrun or Ray started beside this one, in contact; `ALONE` if it was started by hand.

    Args:
        device: where this training computes; of several GPUs, each worker on a machine takes its own.

    Raises:
        UsageError: more workers on this machine than GPUs.
        WorkerLostError: the others cannot be reached.
    """
    if dist.is_initialized():  # by Ray
        yield Workers(dist.get_rank(), dist.get_world_size())
        return
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    workers = Workers(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if device.type == "cuda":
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise UsageError(f"{here} workers on this machine need as many GPUs, torch finds {gpus}; start {gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with workers._exchange():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield workers
    dist.destroy_process_group()  # not after an error: others may never answer
