"""Timing of all that a plan names, its journal, and the device file that comes of it.

Everything is made ready first, then timed in rounds: each round times every operator and every network once, in a new
random order, so that what the host does beside it falls on all alike. A round is a line of the journal, so a kill loses
one round at most. The time of a point is that of its fastest run: what other programs do can only add to it.

Operators by themselves are faster than in a network, where they drive each other's data out of the caches. What a layer
and a weight take longer there is fitted to some networks, and the table is checked with others.

On one thread the clock is the CPU time of the thread, which programs beside it do not add to; with more threads it is
the wall clock, and the host should be idle.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import append_line, write_atomic
from hwmodel.measured import OPERATORS, CheckedNetwork, FloatArray, Host, InNetwork, MeasuredHost, OperatorGrid
from hwmodel.measured_cost import MeasuredCostModel
from quasar.measuring.plan import Networks, Plan
from quasar.measuring.runtime import HostRuntime, Point, Run, Timed
from quasar.progress import stage
from supernet.config import Progress
from supernet.lowering import lower
from supernet.subnet import Subnet

_CALL = Point("call", ())


def burst_us(run: Run, clock: Callable[[], float], *, burst_s: float) -> float:
    """Microseconds of the fastest of several runs in a row: of those within `burst_s` seconds, and of five at least.

    The first ones bring what is needed back into the caches, and one that was interrupted has to read it again.
    """
    found: list[float] = []
    end = time.perf_counter() + burst_s
    while len(found) < 5 or time.perf_counter() < end:
        start = clock()
        run()
        found.append(clock() - start)
    return 1e6 * min(found)


def measure(
    runtime: HostRuntime, plan: Plan, *, threads: int, out: Path, power_w: float | None, seed: int
) -> MeasuredHost:
    """Times a plan on this host, checks the table with networks that are not in it, and writes the device file.

    Rounds in the journal beside `out` are not repeated; the journal is removed when the file is written.

    Raises:
        UsageError: the journal is of another host, plan or version.
        DamagedInputError: the journal is broken.
    """
    host = Host.here(runtime=runtime.name, threads=threads, packages=runtime.packages)
    networks = Networks.of(plan, seed=seed)
    header = {"host": dataclasses.asdict(host), "plan": dataclasses.asdict(plan), "seed": seed}
    journal = _Journal(journal_of(out), header)
    points, table = _timed(runtime, plan, networks, journal, threads=threads, seed=seed)
    times = table.min(axis=0)
    of_points, of_fitted, of_checked = np.split(times, [len(points), len(points) + len(networks.fitted)])
    operators = {point: (us, points[point]) for point, us in zip(points, of_points.tolist(), strict=True)}
    versions = ", ".join(f"{package} {number}" for package, number in host.versions.items())
    measured = MeasuredHost(
        name=out.stem,
        title=f"{host.cpu}, {threads} of {host.cores} cores, {versions}",
        form=runtime.form,
        clock="CPU time of one thread" if threads == 1 else "wall clock",
        host=host,
        power_w=power_w,
        noise=float(np.median(np.median(table, axis=0) / times) - 1),
        layers=runtime.layers,
        operators=_grids(operators),
        in_network=InNetwork(layer_us=0.0, weight_ns=0.0),
        check=(),
    )
    measured = _fitted(measured, networks.fitted, of_fitted)
    measured = _checked(measured, networks.checked, of_checked)
    measured.save(out)
    journal.remove()
    return measured


def _timed(
    runtime: HostRuntime, plan: Plan, networks: Networks, journal: _Journal, *, threads: int, seed: int
) -> tuple[dict[Point, int], FloatArray]:
    """The number of copies in each point, and microseconds of all points and then networks in each round, (R, N)."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    rounds = journal.rounds()
    with stage("prepare") as progress:
        points, runs = _ready(runtime, plan, (*networks.fitted, *networks.checked), progress)
    if any(len(known) != len(runs) for known in rounds):
        raise DamagedInputError(f"{journal.path}: a round does not have {len(runs)} times; use --overwrite")
    rng = np.random.default_rng((seed, len(rounds)))
    with stage("measure") as progress:
        while len(rounds) < plan.rounds:
            found = np.zeros(len(runs))
            for done, index in enumerate(rng.permutation(len(runs)).tolist(), start=len(rounds) * len(runs) + 1):
                found[index] = burst_us(runs[index], clock, burst_s=plan.burst_s)
                progress(done, plan.rounds * len(runs), f"round {len(rounds) + 1} of {plan.rounds}")
            journal.add(found)
            rounds.append(found.tolist())
    return points, np.array(rounds)


def journal_of(out: Path) -> Path:
    """Where the rounds of an unfinished measurement are kept."""
    return out.with_name(f".{out.name}.rounds.jsonl")


def _ready(
    runtime: HostRuntime, plan: Plan, subnets: Sequence[Subnet], ready: Progress
) -> tuple[dict[Point, int], list[Run]]:
    """All points, the call first, with the number of copies in each, and the runs of all points and networks."""
    makers: list[Callable[[], Mapping[Point, Timed]]] = [
        *(
            partial(runtime.linears, plan.tokens, width=width, hidden=hidden)
            for width, hidden in product(plan.widths, plan.hidden)
        ),
        *(partial(runtime.elementwise, plan.tokens, width=width) for width in plan.hidden),
        *(
            partial(runtime.attention, grid=grid, heads=heads, head_dim=head_dim)
            for grid, heads, head_dim in product(plan.grids, plan.heads, plan.head_dims)
        ),
        *(
            partial(runtime.patch_embed, grid=grid, patch_size=patch_size, width=width)
            for grid, patch_size, width in product(plan.patch_grids, plan.patch_sizes, plan.embed_widths)
        ),
    ]
    total = len(makers) + len(subnets)
    timed: dict[Point, Timed] = {_CALL: Timed(runtime.call(), 1)}
    for done, make in enumerate(makers, start=1):
        timed |= make()
        ready(done, total, "operators")
    runs = [some.run for some in timed.values()]
    for done, subnet in enumerate(subnets, start=len(makers) + 1):
        runs.append(runtime.network(subnet))
        ready(done, total, "networks")
    return {point: some.copies for point, some in timed.items()}, runs


def _grids(times: Mapping[Point, tuple[float, int]]) -> dict[str, OperatorGrid]:
    """The table of each operator from (time of a run, copies in it) at its points: what a copy adds to a call."""
    call_us, _ = times[_CALL]
    grids = {}
    for operator in OPERATORS:
        known = {point.sizes: found for point, found in times.items() if point.operator == operator}
        axes = [sorted(set(values)) for values in zip(*known, strict=True)]
        time_us = np.zeros([len(axis) for axis in axes])
        for place, sizes in zip(np.ndindex(time_us.shape), product(*axes), strict=True):
            run_us, copies = known[sizes]
            time_us[place] = run_us if operator == "call" else max(0.0, run_us - call_us) / copies
        grids[operator] = OperatorGrid(axes=tuple(np.array(axis, dtype=np.float64) for axis in axes), time_us=time_us)
    return grids


def _fitted(measured: MeasuredHost, subnets: Sequence[Subnet], times_us: FloatArray) -> MeasuredHost:
    """The same with what layers take longer in these networks, by least squares of relative errors, none below 0."""
    from scipy.optimize import nnls

    without = np.zeros(len(subnets))
    terms = np.zeros((len(subnets), 2))
    for unit, column in ((InNetwork(layer_us=1.0, weight_ns=0.0), 0), (InNetwork(layer_us=0.0, weight_ns=1.0), 1)):
        for index, subnet in enumerate(subnets):
            workload = lower(subnet)
            without[index] = 1e3 * MeasuredCostModel(measured).estimate(workload).latency_ms
            with_unit = MeasuredCostModel(dataclasses.replace(measured, in_network=unit)).estimate(workload)
            terms[index, column] = 1e3 * with_unit.latency_ms - without[index]
    layer_us, weight_ns = nnls(terms / times_us[:, None], 1 - without / times_us)[0].tolist()
    return dataclasses.replace(measured, in_network=InNetwork(layer_us=layer_us, weight_ns=weight_ns))


def _checked(measured: MeasuredHost, subnets: Sequence[Subnet], times_us: FloatArray) -> MeasuredHost:
    """The same with the networks that check it."""
    model = MeasuredCostModel(measured)
    estimates = [model.estimate(lower(subnet)) for subnet in subnets]
    outside = next((estimate.violations[0] for estimate in estimates if estimate.violations), None)
    assert outside is None, outside  # a plan holds the networks that it is checked with
    check = tuple(
        CheckedNetwork(digest=subnet.digest, measured_ms=round(us / 1e3, 6), predicted_ms=round(estimate.latency_ms, 6))
        for subnet, estimate, us in zip(subnets, estimates, times_us.tolist(), strict=True)
    )
    return dataclasses.replace(measured, check=check)


class _Journal:
    """Rounds of an unfinished measurement: a header that says of what, then a line for each round."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self._header = json.loads(json.dumps(header))

    def rounds(self) -> list[list[float]]:
        """The whole rounds in it; it is begun if there is none."""
        if not self.path.exists():
            append_line(self.path, json.dumps(self._header))
            return []
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            if not lines[-1].endswith("\n"):  # a kill left a part of the last round
                write_atomic(self.path, "".join(lines[:-1]))
                del lines[-1]
            header, *rounds = map(json.loads, lines)
            found = [[float(value) for value in times_us] for times_us in rounds]
        except (ValueError, TypeError, IndexError) as error:
            raise DamagedInputError(
                f"{self.path}: cannot be read as rounds of a measurement; use --overwrite"
            ) from error
        if header != self._header:
            raise UsageError(
                f"{self.path}: is of another host, version or plan; use --overwrite to measure from the beginning"
            )
        return found

    def add(self, times_us: FloatArray) -> None:
        """Appends a round."""
        append_line(self.path, json.dumps([round(value, 4) for value in times_us.tolist()]))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
