"""What a network costs on a host where its operators were timed: sums over a table, interpolated (`hwmodel.measured`).

The host says of which operators each kind of layer consists: a qkv may be three products, a GELU belongs to fc1,
softmax and both products of attention are one operator. To that come, in each layer with an operator, `layer_us`, and
in a product `weight_ns` for each stored weight: what they take longer in a network (`hwmodel.measured.InNetwork`). The
latency of a network is the sum over its layers. What the runtime takes for a call ("call") belongs to the patch
embedding, which every network has once.

A network with a layer outside the measured sizes has a violation (`fits` is False): nobody measured that, so a search
leaves it out. Times are whole nanoseconds for each layer, so that they add up to the same numbers in whatever order.
Bits of weights do not matter: the host runs all rows in one precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from hwmodel.measured import OPERATORS, MeasuredHost
from hwmodel.processor_cost import LayerTimes, ProcessorCostModel
from hwmodel.workload import GemmColumns, IntArray, Population, VectorColumns, Workload

#: kinds that no network of a measurement has, and what they are like: both take codes to the residual stream
_LIKE = {"merge": "proj"}


class _Use(NamedTuple):
    """An operator in L layers of one kind: where they stand, its sizes (K, L) there, and how often it runs (L,)."""

    operator: str
    places: IntArray
    sizes: NDArray[np.float64]
    runs: IntArray


class MeasuredCostModel(ProcessorCostModel):
    """The cost of networks on a host that was measured; see the module's docstring."""

    def __init__(self, host: MeasuredHost) -> None:
        super().__init__(host, power_w=np.nan if host.power_w is None else host.power_w)
        self.host = host

    def layer_times(self, population: Population) -> LayerTimes:
        """See `ProcessorCostModel`; raises `UsageError` for a kind of layer that was not measured."""
        gemms_ns, gemms_outside = self._times(population.gemms)
        vectors_ns, vectors_outside = self._times(population.vectors)
        return LayerTimes(
            gemms_ns=gemms_ns,
            vectors_ns=vectors_ns,
            gemm_bounds=[self._bound(kind) for kind in population.gemms.kinds],
            vector_bounds=[self._bound(kind) for kind in population.vectors.kinds],
            gemms_outside=gemms_outside,
            vectors_outside=vectors_outside,
        )

    def violations(self, workload: Workload, times: LayerTimes) -> tuple[str, ...]:
        """A sentence for each size of an operator that lies outside of what was measured."""
        found: dict[tuple[str, str], str] = {}
        if not (times.gemms_outside.any() or times.vectors_outside.any()):
            return ()
        population = Population.of(workload)
        for columns in (population.gemms, population.vectors):
            for use in self._uses(columns):
                grid = self.host.operators[use.operator]
                for size, axis, values, misses in zip(
                    OPERATORS[use.operator], grid.axes, use.sizes, grid.outside(use.sizes), strict=True
                ):
                    if misses.any():
                        first = int(misses.argmax())
                        found.setdefault(
                            (use.operator, size),
                            f"{size} {values[first]:g} of {columns.names[use.places[first]]} lie outside {axis[0]:g} "
                            f"to {axis[-1]:g}, where {use.operator} was measured on {self.host.name}",
                        )
        return tuple(found.values())

    def _times(self, columns: GemmColumns | VectorColumns) -> tuple[IntArray, NDArray[np.bool_]]:
        """Nanoseconds of L layers, and whether each is outside of what was measured, both (L,)."""
        time_us = np.zeros(len(columns.names))
        outside = np.zeros(len(columns.names), dtype=np.int64)
        for use in self._uses(columns):
            grid = self.host.operators[use.operator]
            time_us[use.places] += use.runs * grid.times(use.sizes)
            outside[use.places] += use.runs * grid.outside(use.sizes).any(axis=0)
        extra = self.host.in_network
        own = np.array([bool(self._rule(kind)) for kind in columns.kinds], dtype=np.bool_)
        time_us += extra.layer_us * (own & (columns.count[0] > 0))
        if isinstance(columns, GemmColumns):
            time_us += extra.weight_ns / 1000 * columns.weight_bits(high_bits=1, low_bits=1)[0]  # that is, of weights
        return np.rint(1000 * time_us).astype(np.int64), outside > 0

    def _uses(self, columns: GemmColumns | VectorColumns) -> Iterator[_Use]:
        """The operators that layers consist of."""
        kinds = np.array(columns.kinds, dtype=object)
        for kind in dict.fromkeys(columns.kinds):
            places = np.flatnonzero(kinds == kind)
            for operator, pieces in self._rule(kind).items():
                yield _use(operator, columns, places, pieces)

    def _rule(self, kind: str) -> Mapping[str, int]:
        kind = kind if kind in self.host.layers else _LIKE.get(kind, kind)
        if kind not in self.host.layers:
            raise UsageError(
                f"layers of kind '{kind}' were not measured on {self.host.name}; known: {', '.join(self.host.layers)}"
            )
        return self.host.layers[kind]

    def _bound(self, kind: str) -> str:
        return "measured" if self._rule(kind) else "in another layer"


def _use(operator: str, columns: GemmColumns | VectorColumns, places: IntArray, pieces: int) -> _Use:
    """One operator in the layers at `places`, each of which it runs in so many `pieces` of equal size."""
    tokens, count = columns.tokens[0, places], columns.count[0, places]
    sizes: dict[str, NDArray[np.generic]] = {"tokens": tokens}
    if isinstance(columns, VectorColumns):
        sizes["width"] = columns.width[0, places]
    else:
        rows = (columns.rows_high + columns.rows_low)[0, places]
        sizes |= {"inputs": columns.inputs[0, places], "rows": rows / pieces, "width": rows}
        sizes |= {"heads": count, "head_dim": columns.inputs[0, places]}
    if operator == "attention":  # runs all heads at once
        count = np.minimum(count, 1)
    if not sizes.keys() >= set(OPERATORS[operator]):
        raise UsageError(f"layers of kind '{columns.kinds[places[0]]}' have no sizes for the operator '{operator}'")
    wanted = [sizes[size].astype(np.float64) for size in OPERATORS[operator]]
    return _Use(operator, places, np.array(wanted).reshape(len(wanted), len(places)), pieces * count)
