"""`packed`: the network's integers in the order in which the accelerator streams them, `weights.bin`."""

from __future__ import annotations

from collections.abc import Mapping

from hwmodel.errors import DamagedInputError
from quasar.export.bundle import Bundle
from quasar.export.checks import Begin, Subject, Verdict
from quasar.export.manifest import MANIFEST, read_bytes
from quasar.export.source import Source
from quasar.export.weights_file import PACKED_OPERATORS, first_difference, unpack_weights
from supernet.integer_vit import IntegerViT

PACKED = "weights.bin"


class Packed:
    """See `quasar.export.weights_file`."""

    name = "packed"
    summary = "the same integers in the order in which the accelerator streams them"
    packages: tuple[str, ...] = ()
    extra = ""
    needs: tuple[str, ...] = ()
    operators = PACKED_OPERATORS

    @property
    def checks(self) -> Mapping[str, Begin]:
        """Its integers are those of the network."""
        return {PACKED: _check}

    def files(self, source: Source) -> dict[str, bytes]:
        """The file."""
        assert source.packed is not None
        return {PACKED: source.packed[0]}


def packed_network(bundle: Bundle) -> IntegerViT:
    """The network that weights.bin holds; raises `DamagedInputError`."""
    path, index = bundle.folder / PACKED, bundle.manifest.weights
    if index is None:
        raise DamagedInputError(f"{bundle.folder / MANIFEST}: has no index of {PACKED}; export again")
    return unpack_weights(read_bytes(path), index, bundle.config.subnet, source=str(path))


def _check(subject: Subject) -> Verdict:
    bundle = subject.bundle
    difference = first_difference(subject.network, packed_network(bundle), name="network")
    if difference is not None:
        raise DamagedInputError(f"{bundle.folder / PACKED}: holds other integers in {difference}; export again")
    return Verdict(status="passed", detail="all its integers are those of the integer network")
