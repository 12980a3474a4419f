"""Exported subnets of one supernet that take turns in one process: which one answers follows a budget.

    runtime = Runtime.load([Path("runs/quickstart/export/latency-0.009ms"), ...])
    runtime.set_budget(latency_ms=0.01)
    prediction = runtime.predict(images)

A switch replaces one reference: no weights move, since all subnets are slices of one store (`quasar.runtime.store`).
Any number of threads may call anything at any time. A prediction runs to its end on the subnet that was current when
it began, and says which that was.

Shapes: B images, C channels, height H, width W.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.errors import UsageError
from hwmodel.registry import unknown_name
from quasar.export.bundle import Bundle, load_bundle
from quasar.runtime.budget import Budget, Choice, Offer, choose
from quasar.runtime.images import Preprocessing
from quasar.runtime.store import share, tensor_bytes
from supernet.standalone import SubnetViT

#: predictions whose times `stats` tells of
WINDOW = 1000

Costs = Literal["modelled", "measured"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Logits (B, num_classes), of which subnet, and the time in the network."""

    subnet: str
    logits: Tensor
    latency_ms: float


@dataclass(frozen=True, slots=True)
class _Served:
    """A subnet with its bundle. Its name is that of the bundle's folder."""

    name: str
    bundle: Bundle
    network: SubnetViT


class Runtime:
    """See the module's docstring.

    At first the most accurate subnet is current; where accuracies are not recorded, the slowest.

    Attributes:
        accuracy_of: the images whose recorded accuracy decides: "validation" where all bundles have it, else "test",
            or None where some have neither. Then there are no budgets.
        preprocessing: what becomes of raw images.
        image_shape: (C, S, S) of an image after that.
        classes: names by label, None where they are not known.
        weight_bytes: of the store and all that the subnets have for themselves.
        accelerators: how many different ones the bundles are for. A switch between two needs another bitstream.
    """

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        """Raises as `load` does."""
        if not bundles:
            raise UsageError("give at least one bundle")
        _check_alike(bundles)
        networks = share(bundles)
        served = [_Served(b.folder.name, b, network) for b, network in zip(bundles, networks, strict=True)]
        served.sort(key=lambda one: one.bundle.manifest.cost["latency_ms"])
        self._served = {one.name: one for one in served}
        self._modelled_ms = {one.name: float(one.bundle.manifest.cost["latency_ms"]) for one in served}
        self._measured_ms: dict[str, float] = {}
        self.accuracy_of, self._accuracies = _accuracies(bundles)
        self.preprocessing = Preprocessing(bundles[0].config)
        size = bundles[0].config.training_image_size
        self.image_shape = self.preprocessing.in_chans, size, size
        self.classes = bundles[0].config.classes
        self.weight_bytes = tensor_bytes(networks)
        self.accelerators = len({bundle.accelerator()[0] for bundle in bundles})
        self._lock = threading.Lock()
        self._choice: Choice | None = None
        self._switches = 0
        self._in_flight = 0
        self._predictions: Counter[str] = Counter()
        self._times_ms: deque[float] = deque(maxlen=WINDOW)
        accuracies = self._accuracies or self._modelled_ms
        self._current = max(served, key=lambda one: accuracies[one.name])

    @staticmethod
    def load(folders: Sequence[Path]) -> Runtime:
        """Reads bundles.

        Raises:
            UsageError: no bundle, two of one name or for different data, or bundles whose weights are not slices of
                one store.
            DamagedInputError: a file of a bundle is damaged.
        """
        return Runtime([load_bundle(folder) for folder in folders])

    @property
    def subnets(self) -> tuple[str, ...]:
        """The names of all subnets, by modelled latency."""
        return tuple(self._served)

    @property
    def current(self) -> str:
        """The subnet that the next prediction runs on."""
        return self._current.name

    def offers(self, costs: Costs = "modelled") -> list[Offer]:
        """What there is to choose from, by modelled latency.

        Raises:
            UsageError: a bundle has no recorded accuracy; or measured costs are wanted before `calibrate`.
        """
        if self._accuracies is None:
            lacking = next(one for one in self._served.values() if one.bundle.manifest.val_accuracy is None)
            raise UsageError(
                f"{lacking.bundle.folder}: has no recorded validation accuracy to choose by; export from a finished run"
            )
        if costs == "measured" and not self._measured_ms:
            raise UsageError("no latency was measured on this host; call calibrate() first")
        latencies = self._measured_ms if costs == "measured" else self._modelled_ms
        return [
            Offer(
                subnet=name,
                accuracy=self._accuracies[name],
                latency_ms=latencies[name],
                energy_mj=float(one.bundle.manifest.cost["energy_mj"]),
            )
            for name, one in self._served.items()
        ]

    def set_budget(
        self, *, latency_ms: float | None = None, energy_mj: float | None = None, costs: Costs = "modelled"
    ) -> Choice:
        """Switches to the most accurate subnet within a budget for each image, or to the fastest if there is none.

        Args:
            costs: "modelled" takes latencies from the bundles, of their device; "measured" takes what `calibrate`
                found on this host. Energies are always those of the bundles.

        Raises:
            UsageError: a budget that is none, or see `offers`.
        """
        budget = Budget(latency_ms=latency_ms, energy_mj=energy_mj)
        offer, met = choose(self.offers(costs), budget)
        choice = Choice(offer=offer, budget=budget, costs=costs, met=met)
        self._make_current(offer.subnet, choice)
        return choice

    def switch(self, subnet: str) -> None:
        """Makes a subnet current, whatever the budget was; raises `UsageError` for an unknown name."""
        if subnet not in self._served:
            raise unknown_name("subnet", subnet, self._served)
        self._make_current(subnet, None)

    def _make_current(self, name: str, choice: Choice | None) -> None:
        with self._lock:
            self._switches += name != self._current.name
            self._current, self._choice = self._served[name], choice

    @torch.inference_mode()
    def predict(self, images: Tensor | NDArray[Any]) -> Prediction:
        """The logits of the current subnet.

        Args:
            images: float32 (B, C, H, W), normalised, which each subnet resizes to its own size; or uint8 (B, H, W, C)
                or (H, W, C) as a file has them, which are prepared as evaluation prepares them
                (`quasar.runtime.images`).

        Raises:
            UsageError: images of another type or shape.
        """
        x_BCHW = self._prepared(images)
        with self._lock:
            served = self._current
            self._in_flight += 1
        started = time.perf_counter()
        try:
            logits = served.network(x_BCHW)
            elapsed_ms = 1e3 * (time.perf_counter() - started)
        finally:
            with self._lock:
                self._in_flight -= 1
        with self._lock:
            self._predictions[served.name] += 1
            self._times_ms.append(elapsed_ms)
        return Prediction(subnet=served.name, logits=logits, latency_ms=elapsed_ms)

    def _prepared(self, images: Tensor | NDArray[Any]) -> Tensor:
        dtype = str(images.dtype).removeprefix("torch.")
        if dtype == "uint8":
            return self.preprocessing.pixels(np.asarray(images))
        if dtype != "float32" or images.ndim != 4 or 0 in images.shape:
            raise UsageError(
                f"images must be float32 (B, C, H, W) or uint8 (B, H, W, C), not {dtype} {tuple(images.shape)}"
            )
        if images.shape[1] != self.preprocessing.in_chans:
            raise UsageError(
                f"the images have {images.shape[1]} channels, the network takes {self.preprocessing.in_chans}"
            )
        return images.detach().cpu() if isinstance(images, Tensor) else torch.tensor(images)

    @torch.inference_mode()
    def calibrate(self, *, images: int = 1, repeats: int = 9, quantile: float = 0.5) -> dict[str, float]:
        """Measures each subnet's latency on this host, in ms, for `set_budget(costs="measured")`.

        The subnets take turns, so that all meet the same disturbances; the first turn is not counted.

        Args:
            images: in a batch, whose whole time counts.
            quantile: of the repeats; 0.5 is the median, a larger one leaves deadlines more room.
        """
        batch = torch.randn(images, *self.image_shape, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in self._served}
        for repeat in range(repeats + 1):
            for name, one in self._served.items():
                started = time.perf_counter()
                one.network(batch)
                if repeat:
                    times[name].append(1e3 * (time.perf_counter() - started))
        self._measured_ms = {name: float(np.quantile(own, quantile)) for name, own in times.items()}
        return dict(self._measured_ms)

    def stats(self) -> dict[str, Any]:
        """Plain values for JSON: what is current and why, and what was done so far.

        Times are those in the network of the last `WINDOW` predictions, in ms, None before the first.
        """
        with self._lock:
            times = list(self._times_ms)
            choice = self._choice
            state = {
                "current": self._current.name,
                "switches": self._switches,
                "in_flight": self._in_flight,
                "predictions": {name: self._predictions[name] for name in self._served},
            }
        quantiles = np.quantile(times, (0.5, 0.95)).tolist() if times else (None, None)
        return state | {
            "choice": None if choice is None else choice.to_dict(),
            "subnets": [self._describe(name) for name in self._served],
            "accuracy_of": self.accuracy_of,
            "latency_ms": dict(zip(("median", "p95"), quantiles, strict=True)),
            "weight_bytes": self.weight_bytes,
        }

    def _describe(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "accuracy": None if self._accuracies is None else self._accuracies[name],
            "modelled_ms": self._modelled_ms[name],
            "measured_ms": self._measured_ms.get(name),
            "energy_mj": self._served[name].bundle.manifest.cost["energy_mj"],
        }


def _check_alike(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    names = Counter(bundle.folder.name for bundle in bundles)
    for bundle in bundles:
        if names[bundle.folder.name] > 1:
            raise UsageError(f"{bundle.folder}: another bundle has the same folder name; rename one of the folders")
        for what in ("mean", "std", "classes", "training_image_size"):
            own, other = getattr(bundle.config, what), getattr(first.config, what)
            if own != other:
                raise UsageError(
                    f"{bundle.folder} and {first.folder} do not share one store: {what} of their data differ; give "
                    "bundles of one run"
                )


def _accuracies(bundles: Sequence[Bundle]) -> tuple[str | None, dict[str, float] | None]:
    """What all bundles recorded, the accuracy on validation images before that on test images."""
    for of, key in (("validation", "val_accuracy"), ("test", "test_accuracy")):
        recorded = {bundle.folder.name: getattr(bundle.manifest, key) for bundle in bundles}
        if None not in recorded.values():
            return of, recorded
    return None, None
