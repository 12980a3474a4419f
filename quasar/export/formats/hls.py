"""`hls`: the accelerator with this network as a C++ kernel for Vitis HLS, which any C++ compiler can run, too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwmodel.device import load_device
from quasar.export.checks import Batch, Begin, Subject, Verdict
from quasar.export.hls_kernel import hls_files
from quasar.export.hls_run import build_hls
from quasar.export.source import Source
from quasar.export.weights_file import PACKED_OPERATORS

HLS_FOLDER = "hls"


class Hls:
    """See `quasar.export.hls_kernel`."""

    name = "hls"
    summary = "the accelerator with this network in C++, for Vitis HLS and any C++ compiler"
    packages: tuple[str, ...] = ()
    extra = ""
    needs = ("packed",)
    operators = PACKED_OPERATORS

    @property
    def checks(self) -> Mapping[str, Begin]:
        """Compiled by g++ it gives the network's integers."""
        return {"integers in HLS C++": _Simulation}

    def files(self, source: Source) -> dict[str, bytes]:
        """Sources and tables."""
        assert source.packed is not None
        files = hls_files(
            source.network,
            source.packed[1],
            source.info.accelerator,
            images=source.images,
            part=load_device(source.info.device).part,
        )
        return {f"{HLS_FOLDER}/{name}": content for name, content in files.items()}


class _Simulation:
    """Inspection: all tensors of the golden image, and the logits of some images of the split."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._kernel = build_hls(subject.bundle.folder / HLS_FOLDER)
        self._images = self._equal = 0

    def see(self, batch: Batch) -> None:
        """Runs the kernel."""
        batch = batch.first(self._subject.few_images, seen=self._images)
        if len(batch.codes):
            self._images += len(batch.codes)
            self._equal += int((self._kernel.logits(batch.codes) == batch.logits).all(axis=1).sum())

    def verdict(self) -> Verdict:
        """Compares the tensors, too."""
        expected, found = self._subject.tensors, self._kernel.tensors(self._subject.golden_images[:1])
        wrong = [
            name
            for name, array in expected.items()
            if name not in found or not np.array_equal(found[name].reshape(-1), array.reshape(-1))
        ]
        figures = {"hls_images": self._images}
        if wrong or self._equal < self._images:
            detail = (
                f"not NumPy's: {len(wrong)} tensors{f', the first is {wrong[0]}' if wrong else ''}; logits of "
                f"{self._images - self._equal:,} of {self._images:,} images"
            )
            return Verdict(status="FAILED", detail=detail, figures=figures)
        return Verdict(
            status="passed",
            detail=f"{len(expected)} tensors and the logits of {self._images:,} images are NumPy's, compiled by g++",
            figures=figures,
        )
