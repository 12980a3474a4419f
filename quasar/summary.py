"""What the commands print for people: tables and the next command to try.

`quasar hw` prints by it too, so that it must load without torch.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from hwmodel.accelerator import BACKENDS, AcceleratorConfig
from hwmodel.calibrate import Result
from hwmodel.cost import FpgaCostEstimate
from hwmodel.device import Device

if TYPE_CHECKING:
    from quasar.finetune_stage import Finetuned
    from quasar.run_folder import RunFolder
    from supernet.evaluate import Evaluation


def _console() -> Console:
    console = Console()
    # A pipe or a log has no width of its own: give tables the room that they need.
    return console if console.is_terminal else Console(width=140)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def print_front(front: Mapping[str, Any], bundles: Mapping[str, Path]) -> None:
    """The chosen subnet of each target; `bundles` maps the folder names of targets to their bundles."""
    from quasar.run_subnets import target_folder

    by_kl = any("val_kl" in target for target in front["targets"])
    costs = [target["cost"] for target in front["targets"] if target["cost"] is not None]
    resources = [name for name in ("dsp", "bram18", "lut") if any(cost[name] is not None for cost in costs)]
    columns = ["target", "latency ms", "FPS", *map(str.upper, resources), *(("KL",) if by_kl else ())]
    table = _table(*columns, "validation", "test", *(("files",) if bundles else ()))
    reasons = []
    for target in front["targets"]:
        label = target_label(target)
        if target["status"] != "ok":
            reasons.append(f"{label}: {target['reason']}")
            table.add_row(label, "infeasible")
            continue
        cost = target["cost"]
        row = [
            label,
            f"{cost['latency_ms']:.4g}",
            f"{cost['fps']:,.0f}",
            *(f"{cost[name]:,}" for name in resources),
            *((f"{target['val_kl']:.4f}",) if by_kl else ()),
            f"{target['val_accuracy']:.2%}",
            f"{target['test_accuracy']:.2%}",
        ]
        if bundles:
            bundle = bundles.get(target_folder(target))
            row.append("–" if bundle is None else _sizes(bundle))
        table.add_row(*row)
    console = _console()
    console.print(table)
    for reason in reasons:
        console.print(reason, highlight=False)
    what = "; ranked by KL, the divergence from floats in nats" if by_kl else ""
    basis = "latency by the analytic model, LUT an estimate" if resources else "latency by the cost model of the device"
    console.print(f"device {front['device']}; {basis}{what}", style="dim")


def print_finetuned(subnets: Sequence[Finetuned]) -> None:
    """What further training has gained, a line for each chosen subnet."""
    table = _table("subnet", "validation before", "after", "gain in points", "test", "")
    for subnet in subnets:
        table.add_row(
            subnet.digest,
            f"{subnet.val_before:.2%}",
            f"{subnet.val_after:.2%}",
            f"{100 * (subnet.val_after - subnet.val_before):+.2f}",
            "–" if subnet.test_accuracy is None else f"{subnet.test_accuracy:.2%}",
            "will be exported" if subnet.kept else "the inherited weights stay",
        )
    _console().print(table)


def print_profile(document: Mapping[str, Any]) -> None:
    """The spread of every figure over a space, the resources of its accelerator, and what its targets ask for."""
    from search.profile import QUANTILES

    table = _table("figure", "min", *(f"{100 * q:g} %" for q in QUANTILES), "max", "unit")
    for name, row in document["figures"].items():
        scale, unit = {"bytes": (1024, "KiB"), "MAC": (1e6, "MMAC")}.get(row["unit"], (1, row["unit"]))
        values = (row["min"], *row["quantiles"], row["max"])
        table.add_row(name.split("_")[0], *(f"{value / scale:,.4g}" for value in values), unit)
    console = _console()
    console.print(table)
    resources = "   ".join(
        f"{name.upper()} {row['used']:,} of {row['limit']:,} allowed" for name, row in document["resources"].items()
    )
    designs = document["accelerators"]
    if document["accelerator"] is not None:
        console.print(f"{resources} (one accelerator for all subnets)", highlight=False)
    elif designs is not None:
        first = designs["drawn"][0]
        design = first["accelerator"]
        size = f"{design['array_rows']}x{design['array_inputs']}"
        console.print(f"at most {resources} (an accelerator for each subnet)", highlight=False)
        console.print(
            f"{designs['shortlist']} of {designs['grid']:,} designs are best for some subnet; random ones get "
            f"{len(designs['drawn'])} of them, {size} {design['backend']} most "
            f"often ({first['share']:.0%})",
            highlight=False,
        )
    console.print(
        f"{document['subnets']:.3g} subnets on {document['device']}; quantiles of random ones; energy is an estimate",
        style="dim",
    )
    for target in document["targets"]:
        if target["reason"]:
            console.print(target["reason"], highlight=False)
        else:
            share = target["share_of_random_subnets"]
            console.print(f"{target['target']}: {share:.1%} of random subnets meet it", highlight=False)


def print_comparison(document: Mapping[str, Any]) -> None:
    """One line for each run."""
    runs = document["runs"]
    limits = list(runs[0]["best_accuracy"])
    table = _table("run", "algorithm", "evaluations", "seconds", "hypervolume", *(f"{limit} ms" for limit in limits))
    for row in runs:
        table.add_row(
            row["name"],
            row["algorithm"] or "–",
            f"{row['evaluations']:,}",
            "–" if row["seconds"] is None else f"{row['seconds']:,.0f}",
            f"{row['hypervolume']:.4f}",
            *("–" if best is None else f"{best:.2%}" for best in row["best_accuracy"].values()),
        )
    console = _console()
    console.print(table)
    console.print(
        f"hypervolume to {document['reference_ms']:.4g} ms and accuracy 0; best validation accuracy under each limit",
        style="dim",
    )
    for key, what in (("device", "devices"), ("data", "data sets"), ("space", "search spaces")):
        found = dict.fromkeys(row[key] for row in runs)
        if len(found) > 1:
            console.print(f"note: the runs have different {what}: {', '.join(found)}", highlight=False)
    print(f"picture: {document['picture']}")


def target_label(target: Mapping[str, Any]) -> str:
    """A target of `front.json` as the user gave it."""
    return f"{target['fps']:g} FPS" if target.get("fps") else f"{target['latency_ms']:g} ms"


def print_left_out() -> None:
    """Which forms of a network an export has not written, for want of a package."""
    from quasar.export.formats.registry import left_out

    for name, command in left_out().items():
        print(f"not written: {name}; to have it: {command}")


def print_bundle(bundle: Path) -> None:
    """What was exported, and the next command."""
    from quasar.export.bundle import load_bundle

    manifest = load_bundle(bundle).manifest
    accuracies = {"validation": manifest.val_accuracy, "test": manifest.test_accuracy}
    measured = ", ".join(f"{split} {share:.2%}" for split, share in accuracies.items() if share is not None)
    print(f"subnet:  {manifest.subnet_digest}, {manifest.cost['latency_ms']:.4g} ms on {manifest.device}, {measured}")
    print(f"forms:   {', '.join(manifest.formats)} ({_sizes(bundle)})")
    print(f"export:  {bundle}")
    print(f"next:    {program()} verify {bundle}")


def _sizes(bundle: Path) -> str:
    from quasar.export.formats.qdq import QDQ_ONNX
    from quasar.export.manifest import WEIGHTS

    files = {"weights": bundle / WEIGHTS, "ONNX": bundle / QDQ_ONNX}
    return ", ".join(f"{name} {file.stat().st_size / 1024:.0f} KiB" for name, file in files.items() if file.exists())


def print_probes(probes: Mapping[str, Evaluation]) -> None:
    """Accuracy of the probe subnets after training."""
    table = _table("subnet", "validation", "loss")
    for name, probe in probes.items():
        table.add_row(name, f"{probe.accuracy:.2%}", f"{probe.loss:.4f}")
    _console().print(table)


def print_dry_run(document: Mapping[str, Any]) -> None:
    """What a few steps of a training took."""
    seconds, device = document["seconds_per_step"], document["device"]
    batch, *shape = document["images"]
    print(
        f"{document['workers']} worker(s) on {device}, {batch:,} images of {' x '.join(map(str, shape))} each\n"
        f"{document['parameters'] / 1e6:,.1f} M parameters, {document['tokens']} tokens, "
        f"{document['subnets']} subnets\n"
        f"step: {seconds['sampled']:.3g} s, of the largest subnet alone {seconds['largest']:.3g} s; "
        f"{document['images_per_second']:,.3g} images/s\n"
        f"peak memory: {document['peak_memory_gib']:.2f} GiB of {'the process' if device == 'cpu' else 'the GPU'}"
    )


def print_tune(document: Mapping[str, Any], *, rows: int = 10) -> None:
    """The best trials of a sweep, why others failed, and what to do with the best one."""
    trials = document["trials"]
    keys = list(trials[0]["parameters"])
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len(set(short)) == len(keys) else keys
    table = _table("trial", document["metric"].replace("_", " "), "epochs", "ended", *names)
    for trial in trials[:rows]:
        table.add_row(
            str(trial["trial"]),
            "–" if trial["value"] is None else f"{trial['value']:.2%}",
            str(trial["epochs"]),
            {"stopped": "stopped early"}.get(trial["state"], trial["state"]),
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in trial["parameters"].values()),
        )
    console = _console()
    console.print(table)
    states = Counter(trial["state"] for trial in trials)
    console.print(", ".join(f"{states[state]} {state}" for state in states) + f" of {len(trials)} trials", style="dim")
    for cause, number in Counter(trial["cause"] for trial in trials if trial["cause"]).most_common(rows):
        console.print(f"failed, {number} of them: {cause}", highlight=False, soft_wrap=True)
    if document["importance"]:
        shares = (f"{key} {share:.0%}" for key, share in document["importance"].items())
        console.print(f"share of the variance of finished trials: {', '.join(shares)}", highlight=False)
    print(f"best:    {document['config']}")
    print(f"picture: {Path(document['folder'], 'tune.png')}")
    print(f"next:    {program()} train {document['config']}")


def print_rank(document: Mapping[str, Any]) -> None:
    """How well inherited results order subnets as trainings of their own do, beside latency and another seed."""
    table = _table(
        "subnets",
        "number",
        "latency ms",
        "measure",
        "inherited",
        "latency",
        "another seed",
        title="Kendall's tau with standalone training, by",
    )
    for name, found in document["sets"].items():
        latency = [subnet["latency_ms"] for subnet in found["subnets"]]
        for metric in ("accuracy", "loss"):
            taus = (found[metric][key] for key in ("inherited", "latency", "seeds"))
            table.add_row(
                {"range": "over the whole range", "equal": "at about equal latency"}[name],
                f"{len(latency)}",
                f"{min(latency):.4g} to {max(latency):.4g}",
                metric,
                *("-" if tau is None else f"{tau:+.2f}" for tau in taus),
            )
    console = _console()
    console.print(table)
    console.print(
        f"{document['epochs']} epochs, {document['seeds']} seeds, {document['images']:,} validation images", style="dim"
    )


def print_next(run: RunFolder, bundles: Mapping[str, Path]) -> None:
    """Where the results are, and what to try with them."""
    print(f"report:  {run.report}")
    for path in bundles.values():
        print(f"export:  {path}")
    if bundles:
        print(f"next:    {program()} verify {run.path}")


def program() -> str:
    """How the user can call this program again: its name, or its path if the shell would not find it."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "quasar" and not shutil.which("quasar") else "quasar"


def print_verification(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """One line for each check of each bundle."""
    for name, report in reports.items():
        print(name)
        for check in report["checks"]:
            print(f"  {check['name']:27} {check['status']:11}  {check['detail']}")
    missing = sum(report["not_checked"] for report in reports.values())
    if missing:
        print(f"{missing} of {sum(len(report['checks']) for report in reports.values())} checks were not made")


def print_cost(cost: FpgaCostEstimate, accelerator: AcceleratorConfig, device: Device) -> None:
    """Latency by layer type and resources beside the device's."""
    kinds: dict[str, list[int]] = {}
    bounds: dict[str, Counter[str]] = {}
    for layer in cost.layers:
        bounds.setdefault(layer.kind, Counter())[layer.bound] += layer.cycles
        cycles_macs_bytes = kinds.setdefault(layer.kind, [0, 0, 0])
        for index, value in enumerate((layer.cycles, layer.macs, layer.weight_bytes)):
            cycles_macs_bytes[index] += value
    table = _table("layer type", "cycles", "share", "MMAC", "weights KiB", "bound by")
    for kind, (cycles, macs, weight_bytes) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        table.add_row(
            kind,
            f"{cycles:,}",
            f"{cycles / cost.cycles:.1%}",
            f"{macs / 1e6:,.2f}",
            f"{weight_bytes / 1024:,.1f}",
            ", ".join(bound for bound, _ in bounds[kind].most_common()),
        )
    console = _console()
    console.print(table)
    a, r = accelerator, cost.resources
    console.print(
        f"{cost.latency_ms:.4g} ms  {cost.fps:,.1f} FPS  {cost.cycles:,} cycles at {a.clock_mhz:g} MHz\n"
        f"array {a.array_rows}x{a.array_inputs} {a.backend}, activations {a.activations}\n"
        f"DSP {r.dsp:,} of {device.dsp:,}   BRAM18 {r.bram18:,} of {device.bram18:,}   "
        f"LUT {r.lut:,} of {device.lut:,} ({_basis(device, 'lut')})   "
        f"FF {r.ff:,} of {device.ff:,} ({_basis(device, 'ff')})\n"
        f"energy {cost.energy_mj:.3g} mJ (estimate)",
        highlight=False,
    )
    for violation in cost.violations:
        console.print(f"over the limit: {violation}", highlight=False)


def _basis(device: Device, resource: str) -> str:
    """What a count of LUT or FF rests on."""
    from hwmodel.resources import FIT_ERRORS

    if device.calibration is None:
        return f"estimate, ± {FIT_ERRORS[resource].std_percent:g} % of open synthesis"
    error = getattr(device.calibration, resource).error_percent
    return "calibrated, one design" if error is None else f"calibrated, ± {error:.1f} %"


def _signed(percent: float) -> str:
    return f"{round(percent, 1) + 0.0:+.1f} %"  # the sum turns -0.0 into 0.0


def print_calibration(result: Result, device: Device) -> None:
    """What each report counts beside the model, without and with the corrections, and the corrections."""
    table = _table(
        "design", "LUT", "before", "after", "FF", "before", "after", "DSP", "model", "BRAM18", "model", "MHz"
    )
    notes = []
    for index, design in enumerate(result.designs):
        u, t = design.utilization, design.timing
        dsp, bram18 = (sum(design.estimates(resource).values()) for resource in ("dsp", "bram18"))
        table.add_row(
            design.label,
            f"{u.lut:,}",
            _signed(result.lut.before_percent[index]),
            _signed(result.lut.after_percent[index]),
            f"{u.ff:,}",
            _signed(result.ff.before_percent[index]),
            _signed(result.ff.after_percent[index]),
            f"{u.dsp:,}",
            f"{dsp:,}",
            f"{u.bram18:,}",
            f"{bram18:,}",
            f"{t.clock_mhz:.1f}" if t else "-",
        )
        if abs(dsp - u.dsp) > 0.05 * dsp:
            notes.append(
                f"{design.label}: {u.dsp:,} DSPs reported, {dsp:,} by the model: is it the same configuration?"
            )
        if u.state != "Routed":
            notes.append(f"{u.path}: design state {u.state}, not Routed: counts before routing are estimates of Vivado")
    backends = {design.accelerator.backend for design in result.designs}
    if len(backends) < len(BACKENDS):
        notes.append(f"all designs are {', '.join(backends)}: for the other backend the corrections are a guess")
    console = _console()
    console.print(table)
    for resource, fitted in (("LUT", result.lut), ("FF", result.ff)):
        error = fitted.fit.error_percent
        bar = "error unknown from one design" if error is None else f"designs within ± {error:.1f} %"
        console.print(f"{resource}: {fitted.method}, {bar}", highlight=False)
        factors: dict[tuple[float, float | None], list[str]] = {}
        for part, factor in fitted.fit.factors.items():
            factors.setdefault((factor.value, factor.error), []).append(part)
        for (value, error), parts in factors.items():
            bar = "" if error is None else f" ± {error:.3f}"
            console.print(f"  x {value:.3f}{bar}  {', '.join(parts)}", highlight=False)
    if result.clock_mhz is None:
        console.print(f"clock: no timing report, {device.clock_mhz:g} MHz stays", highlight=False)
    else:
        error = result.clock_error_mhz
        bar = "" if error is None else f", designs spread by {error:.1f} MHz"
        console.print(f"clock: {result.clock_mhz:g} MHz instead of {device.clock_mhz:g}{bar}", highlight=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False)
