"""A controller that follows a trace of budgets, beside every subnet that stays the same all the time.

Images are processed one at a time, in the order in which they come; one that comes too early waits. When its turn
comes, the controller takes the most accurate subnet for what the wait has left of its budget, or the fastest if none
is fast enough. Where images come at a fixed rate it also takes none that is slower than that rate, so that no image
has to wait for the one before. It does not look ahead.

An image is missed where its latency budget is shorter than the time from its arrival to its result, or its energy
budget less than the energy of its subnet. Accuracies are those that the bundles record, weighted by images.

`simulate` is exact arithmetic on known costs, without a clock. `follow_live` runs the networks on this host. A switch
takes no time in the former: the accelerator streams the weights of every image anyway, and the latter shows that it
takes microseconds here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from quasar.runtime.budget import Budget, Offer, choose
from quasar.runtime.runtime import Costs, Runtime
from quasar.runtime.trace import Frame
from supernet.config import Progress

#: in ms: what rounding may add to a time, a nanosecond
_SLACK_MS = 1e-6
#: of the times measured before a live run; a median would miss half of the deadlines that it just meets
LIVE_QUANTILE = 0.95

#: the subnet for an image, from its budget and how long it has waited in ms
Policy = Callable[[Budget, float], Offer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of an image: its subnet, how long it waited, and how long that subnet took."""

    frame: Frame
    offer: Offer
    waited_ms: float
    took_ms: float

    @property
    def start_ms(self) -> float:
        """When its turn came."""
        return 1e3 * self.frame.arrival_s + self.waited_ms

    @property
    def response_ms(self) -> float:
        """From arrival to result."""
        return self.waited_ms + self.took_ms

    @property
    def missed(self) -> bool:
        """Whether it took more than its budget."""
        return not replace(self.offer, latency_ms=self.response_ms - _SLACK_MS).meets(self.frame.budget)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """Of one subnet: images, the time that it worked, and the time from its first image to that of another subnet."""

    images: int
    busy_s: float
    current_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A whole trace: sums over its images, the mean of their recorded accuracies, and the use of each subnet."""

    images: int
    missed: int
    accuracy: float
    energy_mj: float
    worst_response_ms: float
    switches: int
    subnets: dict[str, Use]

    @staticmethod
    def of(answers: Sequence[Answer]) -> Outcome:
        """The sums of answers in their order, one or more."""
        ends_ms = [*(answer.start_ms for answer in answers[1:]), answers[-1].start_ms + answers[-1].took_ms]
        times: dict[str, list[tuple[float, float]]] = {}
        for answer, end_ms in zip(answers, ends_ms, strict=True):
            times.setdefault(answer.offer.subnet, []).append((answer.took_ms, end_ms - answer.start_ms))
        names = [answer.offer.subnet for answer in answers]
        return Outcome(
            images=len(answers),
            missed=sum(answer.missed for answer in answers),
            accuracy=sum(answer.offer.accuracy for answer in answers) / len(answers),
            energy_mj=sum(answer.offer.energy_mj for answer in answers),
            worst_response_ms=max(answer.response_ms for answer in answers),
            switches=sum(name != before for before, name in pairwise(names)),
            subnets={
                name: Use(
                    images=len(spans),
                    busy_s=sum(busy for busy, _ in spans) / 1e3,
                    current_s=sum(current for _, current in spans) / 1e3,
                )
                for name, spans in times.items()
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The controller, and each subnet alone on the same images.

    Attributes:
        live: whether the controller ran on this host. The others are simulated in any case, with the same costs.
    """

    live: bool
    costs: Costs
    controller: Outcome
    static: dict[str, Outcome]

    @property
    def best_static(self) -> str | None:
        """The most accurate subnet that alone meets every budget, the one with less energy of two; None without one."""
        meeting = {name: outcome for name, outcome in self.static.items() if outcome.missed == 0}
        return max(meeting, key=lambda name: (meeting[name].accuracy, -meeting[name].energy_mj), default=None)

    @property
    def against_best(self) -> dict[str, float] | None:
        """What the controller has more than the best subnet alone: points of accuracy, and per cent of its energy."""
        if self.best_static is None:
            return None
        best = self.static[self.best_static]
        return {
            "accuracy_points": 100 * (self.controller.accuracy - best.accuracy),
            "energy_percent": 100 * (self.controller.energy_mj / best.energy_mj - 1),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"best_static": self.best_static, "against_best": self.against_best}


def simulate(frames: Sequence[Frame], policy: Policy) -> list[Answer]:
    """The answers to images whose subnets take exactly the time and energy that they are offered for."""
    answers: list[Answer] = []
    free_ms = 0.0
    for frame in frames:
        waited_ms = max(0.0, free_ms - 1e3 * frame.arrival_s)
        offer = policy(frame.budget, waited_ms)
        answers.append(Answer(frame=frame, offer=offer, waited_ms=waited_ms, took_ms=offer.latency_ms))
        free_ms = answers[-1].start_ms + offer.latency_ms
    return answers


def controller(offers: Sequence[Offer], *, fps: float | None = None) -> Policy:
    """The policy of the module's docstring; `fps` is the rate of the images, if it is fixed."""
    return lambda budget, waited_ms: choose(offers, budget_left(budget, waited_ms, fps=fps))[0]


def budget_left(budget: Budget, waited_ms: float, *, fps: float | None) -> Budget:
    """What an image may still take after a wait, and without delaying the next one if they come at a fixed rate."""
    limits = [] if budget.latency_ms is None else [budget.latency_ms - waited_ms]
    if fps is not None:
        limits.append(1e3 / fps)
    if not limits:
        return budget
    return replace(budget, latency_ms=max(min(limits), 0.0) + _SLACK_MS)


def compare(
    offers: Sequence[Offer], frames: Sequence[Frame], *, fps: float | None = None, costs: Costs = "modelled"
) -> Comparison:
    """The controller and all subnets alone, simulated; `costs` says where the latencies of the offers are from."""
    return Comparison(
        live=False,
        costs=costs,
        controller=Outcome.of(simulate(frames, controller(offers, fps=fps))),
        static=_alone(frames, offers),
    )


def follow_live(
    runtime: Runtime, frames: Sequence[Frame], *, fps: float | None = None, progress: Progress | None = None
) -> Comparison:
    """The controller on this host and its clock, with noise as images; the subnets alone with the times measured.

    Latencies are measured before it starts (the 95th percentile of each subnet), as `Runtime.calibrate` does.

    Raises:
        UsageError: see `Runtime.offers`.
    """
    runtime.calibrate(repeats=20, quantile=LIVE_QUANTILE)
    offers = {offer.subnet: offer for offer in runtime.offers("measured")}
    image = torch.randn(runtime.image_shape, generator=torch.Generator().manual_seed(0))[None]
    answers: list[Answer] = []
    origin_s = time.perf_counter() - frames[0].arrival_s
    for number, frame in enumerate(frames):
        time.sleep(max(0.0, frame.arrival_s - (time.perf_counter() - origin_s)))
        start_s = time.perf_counter() - origin_s
        waited_s = start_s - frame.arrival_s
        left = budget_left(frame.budget, 1e3 * waited_s, fps=fps)
        runtime.set_budget(latency_ms=left.latency_ms, energy_mj=left.energy_mj, costs="measured")
        name = runtime.predict(image).subnet
        took_s = time.perf_counter() - origin_s - start_s
        answers.append(Answer(frame=frame, offer=offers[name], waited_ms=1e3 * waited_s, took_ms=1e3 * took_s))
        if progress is not None:
            progress(number + 1, len(frames), name)
    return Comparison(
        live=True, costs="measured", controller=Outcome.of(answers), static=_alone(frames, list(offers.values()))
    )


def _alone(frames: Sequence[Frame], offers: Sequence[Offer]) -> dict[str, Outcome]:
    return {offer.subnet: Outcome.of(simulate(frames, lambda *_, only=offer: only)) for offer in offers}
