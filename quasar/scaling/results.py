"""What a study leaves behind: `scale.json`, `candidates.csv` and `scale.png`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from hwmodel.files import write_atomic
from quasar.figures.scaling import Curve, scaling_figure
from quasar.scaling.outcome import Outcome, Row, mean_and_error
from quasar.scaling.shapes import DIMENSIONS, VitShape

#: the lines of a comparison in the order in which they are drawn, with their titles
TITLES = {
    "strategy": "strategy found",
    "compound": "compound scaling by hand",
    "best": "best candidate",
    "baseline": "baseline, unscaled",
}


def write_results(outcome: Outcome) -> dict[str, Any]:
    """Writes the files of a study into its folder, and gives `scale.json`."""
    folder, document = outcome.study.folder, to_document(outcome)
    write_atomic(folder / "candidates.csv", _csv(outcome))
    png = io.BytesIO()
    _figure(outcome, document).savefig(png, format="png", dpi=150, facecolor="white")
    write_atomic(folder / "scale.png", png.getvalue())
    write_atomic(folder / "scale.json", json.dumps(document, indent=2) + "\n")
    return document


def to_document(outcome: Outcome) -> dict[str, Any]:
    """A study as plain data.

    `strategy` is what `load_strategy` reads: the law with its base; `exponents` has their errors; `comparison` has a
    row for each compared shape, with accuracies as means over seeds and their standard errors.
    """
    study, plan = outcome.study, outcome.study.plan
    return {
        "folder": str(study.folder),
        "unit": plan.unit,
        "device": study.config.hardware.device,
        "mode": plan.mode,
        "epochs": study.epochs,
        "shapes": len(outcome.candidates.shapes),
        "budgets": [
            {"cost": budget.cost, "near": near, "tried": len(chosen), **_noise(measured.accuracy, measured.error)}
            for budget, near, chosen, measured in zip(
                plan.budgets, outcome.candidates.near, outcome.candidates.chosen, outcome.measured, strict=True
            )
        ],
        "exponents": {name: asdict(exponent) for name, exponent in outcome.found.items()},
        "strategy": {**outcome.strategy.to_dict(), "base": outcome.family.base.to_dict()},
        "compound": {**outcome.compound.to_dict(), "base": plan.baseline.to_dict()},
        "comparison": [_row(row) for row in outcome.rows],
        "left_out": list(outcome.left_out),
        "config": study.to_dict(),
    }


def _noise(accuracy: Any, error: Any) -> dict[str, float]:
    """How far candidates of about equal cost differ, beside how well each is known."""
    return {"accuracy_std": float(np.std(accuracy)), "standard_error": float(np.mean(error))}


def _row(row: Row) -> dict[str, Any]:
    validation, validation_error = mean_and_error(row.validation)
    test, test_error = mean_and_error(row.test)
    return {
        "what": row.what,
        "budget": row.budget,
        "shape": row.shape.to_dict(),
        "macs": row.macs,
        "latency_ms": row.latency_ms,
        "val_accuracy": validation,
        "val_error": validation_error,
        "test_accuracy": test,
        "test_error": test_error,
        "seeds": len(row.test),
    }


def _csv(outcome: Outcome) -> str:
    """All tried candidates, budget by budget, the most accurate first."""
    text, plan = io.StringIO(), outcome.study.plan
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["budget", *DIMENSIONS, "macs", "latency_ms", "val_accuracy", "standard_error", "fitted"])
    for budget, chosen, measured in zip(plan.budgets, outcome.candidates.chosen, outcome.measured, strict=True):
        for place, index in enumerate(measured.best(len(chosen))):
            number = chosen[index]
            macs, latency_ms = outcome.candidates.costs[number].tolist()
            table.writerow(
                [
                    f"{budget.cost:g}",
                    *VitShape.of_row(outcome.candidates.shapes[number]).to_dict().values(),
                    round(macs),
                    "" if np.isnan(latency_ms) else f"{latency_ms:.6g}",
                    f"{measured.accuracy[index]:.6f}",
                    f"{measured.error[index]:.6f}",
                    int(place < plan.best),
                ]
            )
    return text.getvalue()


def _figure(outcome: Outcome, document: dict[str, Any]) -> Any:
    unit = outcome.study.plan.unit
    dots = [
        (float(cost), float(accuracy))
        for measured in outcome.measured
        for cost, accuracy in zip(measured.cost, measured.accuracy, strict=True)
    ]
    curves = []
    for what, title in TITLES.items():
        rows = [row for row in document["comparison"] if row["what"] == what and row[unit] is not None]
        points = [(row[unit], row["test_accuracy"], row["test_error"]) for row in rows]
        curves.append(Curve(what=what, title=title, points=sorted(points)))
    return scaling_figure(dots, [curve for curve in curves if curve.points], unit=unit, device=document["device"])
