"""The report of a run: one HTML file that needs nothing but itself, from whatever the run has written so far.

A stage that has not run leaves a sentence in its section instead of a picture; a file that is damaged is an error,
since a report that silently left a part out would be read as the whole. What the page shows beside the files' own
content is recomputed here from the subnets and the accelerator: rows and bits of each layer (the lowering) and the
cycles of each layer (the cost model). Where the recomputed cycles differ from those that the search recorded, the page
says so.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from pydantic import TypeAdapter, ValidationError

from hwmodel.accelerator import BACKENDS, AcceleratorConfig, Backend
from hwmodel.cost import FpgaCostEstimate, FpgaCostModel
from hwmodel.device import Device, load_device
from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from hwmodel.files import write_atomic
from hwmodel.workload import Workload
from quasar import figures
from quasar.front import Baselines, Front, Target, height
from quasar.run_folder import RunFolder
from search.trial import Trial
from supernet.lowering import lower
from supernet.subnet import Subnet
from supernet.validation import read_yaml, validate

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One of the subnets that training watches, on the validation split."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """One line of `metrics.jsonl`, where it is not about a rollback."""

    epoch: int
    lr: float
    train_loss: float
    seconds: float
    val: dict[str, Probe] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """What a run folder holds; None or empty for what is not there."""

    name: str
    config: str | None
    env: dict[str, Any] | None
    epochs: tuple[Epoch, ...]
    trials: tuple[Trial, ...]
    front: Front | None
    file_bytes: dict[str, dict[str, int]]  # digest of an exported subnet -> path in its folder -> bytes

    @staticmethod
    def read(folder: Path) -> RunData:
        """The content of a run folder.

        Raises:
            UsageError: no such folder, or nothing of a run in it.
            DamagedInputError: a file is not what it should be; the message names the file and the line or key.
        """
        run = RunFolder(folder)
        config, env = folder / "config.yaml", folder / "env.json"
        metrics = run.train / "metrics.jsonl"
        if not any(path.exists() for path in (config, env, metrics, run.journal, run.front)):
            raise UsageError(f"{folder}: is not a run folder (it has no config.yaml); give the folder of a run")
        return RunData(
            name=folder.resolve().name,
            config=_settings(config) if config.exists() else None,
            env=_mapping(env) if env.exists() else None,
            epochs=tuple(_rows(Epoch, metrics, other="rollback")),
            trials=tuple(_rows(Trial, run.journal)),
            front=(
                validate(Front, _mapping(run.front), source=str(run.front), error=DamagedInputError)
                if run.front.exists()
                else None
            ),
            file_bytes=_exported(run.export),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """One chosen subnet with the targets that it serves, and its cost, recomputed layer by layer.

    `cost` is None where it cannot be recomputed; `note` says why, or in what it differs from the record.
    """

    subnet: Subnet
    workload: Workload
    targets: tuple[Target, ...]
    cost: FpgaCostEstimate | None
    note: str | None

    @property
    def label(self) -> str:
        """The targets that it serves."""
        return ", ".join(target.label for target in self.targets)

    @property
    def weights(self) -> int:
        """Number of stored weights; biases, norms and scales not included."""
        return sum(gemm.inputs * gemm.rows * gemm.count for gemm in self.workload.gemms if gemm.stored)


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run folder and gives its path.

    Raises:
        UsageError: `run` is not a run folder, or a chosen subnet has an operator that is not installed here.
        DamagedInputError: a file in it is damaged; the message names the file and the line or key.
        QuasarError: the report cannot be written.
    """
    data = RunData.read(run)
    path = RunFolder(run).report
    write_atomic(path, render(data))
    return path


def write_front_picture(path: Path, front: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Writes the picture of a search's result as PNG, if there is anything to show; raises `QuasarError`."""
    figure = _front_figure(validate(Front, front, source="the search's result"), trials)
    if figure:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150, facecolor="white")
        write_atomic(path, png.getvalue())


def render(data: RunData) -> str:
    """The page of a run."""
    front = data.front
    device, device_problem = _device(front.device) if front else (None, None)
    chosen = [_chosen(group, device) for group in _by_subnet(front)] if front else []
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("report.html.j2").render(
        run=data,
        front=front,
        met=[target for target in front.targets if target.status == "ok"] if front else [],
        device=device,
        device_problem=device_problem,
        chosen=chosen,
        by_kl=_by_kl(data.trials),
        side_by_side=_side_by_side(chosen),
        alternatives=[(t.label, other) for t in front.targets for other in t.alternatives] if front else [],
        accelerators=_accelerators(front) if front else [],
        bounds=_bounds(chosen),
        duration=_duration(sum(epoch.seconds for epoch in data.epochs)),
        facts=_facts(data),
        environment=list(_flat(data.env or {})),
        palette=figures.PALETTE,
        pictures=_pictures(data, chosen),
    )


def _pictures(data: RunData, chosen: Sequence[Chosen]) -> dict[str, Markup]:
    """The pictures of all sections that have something to show; those of subnets are called by their digest."""
    pictures: dict[str, Figure] = {}
    front = _front_figure(data.front, data.trials)
    if front:
        pictures["front"] = front
    if data.front and data.front.hypervolume_curve:
        pictures["search"] = _search_figure(data.front)
    if data.epochs:
        pictures["training"] = figures.curves_figure(_panels(data.epochs))
    widest = figures.widest_rows(choice.workload for choice in chosen)
    for choice in chosen:
        pictures[choice.subnet.digest] = figures.rows_figure(choice.subnet, choice.workload, widest=widest)
    costs = {choice.label: choice.cost for choice in chosen if choice.cost}
    if costs:
        pictures["latency"] = figures.latency_figure(costs)
    # matplotlib escapes the texts of an SVG, so that its markup is safe.
    return {name: Markup(figures.inline_svg(figure, name=name)) for name, figure in pictures.items()}


def _front_figure(front: Front | None, trials: Sequence[Trial]) -> Figure | None:
    """The picture of all trials and the front, None before the first trial."""
    if not (trials or (front and front.pareto)):
        return None
    return figures.front_figure(
        trials=[(trial.latency_ms, height(trial)) for trial in trials],
        front=[(trial.latency_ms, height(trial)) for trial in front.pareto] if front else [],
        targets=[_mark(target) for target in front.targets] if front else [],
        device=front.device if front else "the device",
        references=_references(front.baselines) if front and front.baselines else (),
        kl=_by_kl(trials),
    )


def _by_kl(trials: Sequence[Trial]) -> bool:
    """Whether the search ranked subnets by their divergence."""
    return any(trial.val_kl is not None for trial in trials)


def _references(baselines: Baselines) -> list[figures.Reference]:
    """Random search and the uniform subnets in the picture of the front."""
    references = [figures.Reference(label="random search", points=baselines.random.pareto, color="soft")]
    for bits, color, marker in zip(
        sorted({u.bits for u in baselines.uniform}), ("orange", "green"), "v^", strict=False
    ):
        points = [(u.latency_ms, height(u)) for u in baselines.uniform if u.bits == bits]
        references.append(figures.Reference(label=f"uniform {bits}-bit", points=points, color=color, marker=marker))
    return references


def _search_figure(front: Front) -> Figure:
    """How the search went, beside random search where that was measured."""
    curves = {front.algorithm or "search": front.hypervolume_curve}
    if front.baselines:
        curves["random search" if front.algorithm != "random" else "random again"] = (
            front.baselines.random.hypervolume_curve
        )
    return figures.search_figure(curves, front.importance.choices if front.importance else {})


def _side_by_side(chosen: Sequence[Chosen]) -> list[tuple[str, list[str]]]:
    """The chosen subnets as the columns of a table: the name of each row, and a value for each subnet."""

    def each(text: Callable[[Chosen], str]) -> list[str]:
        return [text(choice) for choice in chosen]

    def blocks(values: Iterable[float]) -> str:
        """Equal neighbours once: 3 3 4 4 4 as 2 × 3, 3 × 4."""
        runs = [(value, len(list(group))) for value, group in itertools.groupby(values)]
        return ", ".join(f"{count} × {value:g}" if count > 1 else f"{value:g}" for value, count in runs)

    def high_share(choice: Chosen, kind: str) -> str:
        gemms = figures.block_linears(choice.workload).get(kind, {}).values()
        rows = sum(gemm.rows * gemm.count for gemm in gemms)
        return f"{sum(gemm.rows_high * gemm.count for gemm in gemms) / rows:.0%}" if rows else "–"

    kinds = dict.fromkeys(kind for choice in chosen for kind in figures.block_linears(choice.workload))
    pools = [("pools before block", each(lambda c: ", ".join(map(str, c.subnet.pooling)) or "–"))]
    return [
        ("image", each(lambda c: f"{c.subnet.image_size} × {c.subnet.image_size}")),
        ("width", each(lambda c: f"{c.subnet.embed_dim}")),
        ("blocks", each(lambda c: f"{c.subnet.depth}")),
        *(pools if any(choice.subnet.pooling for choice in chosen) else ()),
        ("heads of the blocks", each(lambda c: blocks(block.num_heads for block in c.subnet.blocks))),
        ("MLP ratios of the blocks", each(lambda c: blocks(block.mlp_ratio for block in c.subnet.blocks))),
        *((f"rows at high precision, {kind}", [high_share(choice, kind) for choice in chosen]) for kind in kinds),
        ("weights, KiB", each(lambda c: f"{c.workload.weight_bytes / 1024:,.1f}")),
        ("multiply-accumulates, M", each(lambda c: f"{c.workload.macs / 1e6:,.2f}")),
    ]


def _mark(target: Target) -> figures.TargetMark:
    """The place of a target in the picture of the front."""
    point = None
    if target.cost is not None and target.val_accuracy is not None:
        point = (target.cost.latency_ms, target.val_accuracy if target.val_kl is None else target.val_kl)
    return figures.TargetMark(label=target.label, latency_ms=target.latency_ms, chosen=point)


def _panels(epochs: Sequence[Epoch]) -> list[figures.Panel]:
    training = "training, random subnets"
    loss: dict[str, list[figures.Point]] = {training: [(e.epoch, e.train_loss) for e in epochs]}
    accuracy: dict[str, list[figures.Point]] = {}
    for epoch in epochs:
        for name, probe in (epoch.val or {}).items():
            loss.setdefault(f"validation, {name}", []).append((epoch.epoch, probe.loss))
            accuracy.setdefault(f"validation, {name}", []).append((epoch.epoch, probe.accuracy))
    return [
        figures.Panel(title="cross-entropy loss", series=loss),
        figures.Panel(title="accuracy, %", series=accuracy, percent=True),
        figures.Panel(title="learning rate", series={training: [(e.epoch, e.lr) for e in epochs]}),
    ]


def _bounds(chosen: Sequence[Chosen]) -> dict[str, list[float]]:
    """What limits the layers: for each limit, its share of the cycles of each chosen subnet that has a cost."""
    costs = [choice.cost for choice in chosen if choice.cost]
    limits = dict.fromkeys(layer.bound for cost in costs for layer in cost.layers)
    return {
        limit: [sum(layer.cycles for layer in cost.layers if layer.bound == limit) / cost.cycles for cost in costs]
        for limit in limits
    }


def _by_subnet(front: Front) -> list[tuple[Target, ...]]:
    """The targets that are met, those with the same subnet and accelerator together."""
    groups: dict[tuple[Subnet | None, AcceleratorConfig | None], list[Target]] = {}
    for target in front.targets:
        if target.status == "ok":
            groups.setdefault((target.subnet, target.accelerator), []).append(target)
    return [tuple(group) for group in groups.values()]


def _chosen(targets: tuple[Target, ...], device: Device | None) -> Chosen:
    first = targets[0]
    assert first.subnet is not None  # `Target` makes sure
    assert first.cost is not None
    workload = lower(first.subnet)
    cost, note = None, None
    if device is None or first.accelerator is None:
        note = "its cycles cannot be recomputed: the device or the accelerator is not known"
    else:
        try:
            cost = FpgaCostModel(device, first.accelerator).estimate(workload)
        except QuasarError as error:
            note = f"its cycles cannot be recomputed: {error}"
    if cost is not None and first.cost.cycles not in (None, cost.cycles):
        note = (
            f"the search recorded {first.cost.cycles:,} cycles, and the cost model now computes {cost.cycles:,}; "
            "the device file or the model has changed since"
        )
    return Chosen(subnet=first.subnet, workload=workload, targets=targets, cost=cost, note=note)


def _device(name: str) -> tuple[Device | None, str | None]:
    """The device, or why there is none: the report may be written where a plug-in or a board's file is missing."""
    try:
        return load_device(name), None
    except QuasarError as error:
        return None, str(error)


def _accelerators(front: Front) -> list[tuple[str, dict[str, Any], Backend]]:
    """The different accelerators, each with the targets that it is for and its packing backend."""
    groups: dict[AcceleratorConfig, list[str]] = {}
    for target in front.targets:
        if target.accelerator is not None:
            groups.setdefault(target.accelerator, []).append(target.label)
    return [(", ".join(labels), config.to_dict(), BACKENDS[config.backend]) for config, labels in groups.items()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path}: cannot be read as text: {error}") from None


def _settings(path: Path) -> str:
    """The text of `config.yaml`, as it is: its order is the user's."""
    if not isinstance(read_yaml(path, what="configuration file"), dict):
        raise DamagedInputError(f"{path}: expected keys and values")
    return _text(path)


def _mapping(path: Path) -> dict[str, Any]:
    document = _parse(_text(path), path)
    if not isinstance(document, dict):
        raise DamagedInputError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def _rows(cls: type[T], path: Path, *, other: str | None = None) -> Iterator[T]:
    """The lines of a JSONL file as instances of a dataclass; none if there is no file.

    Args:
        other: lines with this key are about something else.
    """
    if not path.exists():
        return
    adapter = TypeAdapter(cls)  # once: files have thousands of lines
    for number, line in enumerate(_text(path).removesuffix("\n").split("\n") if path.stat().st_size else (), start=1):
        row = _parse(line, path, line=number)
        if other is not None and isinstance(row, dict) and other in row:
            continue
        try:
            yield adapter.validate_python(row)
        except ValidationError:
            validate(cls, row, source=f"{path}:{number}", error=DamagedInputError)  # words the same failure


def _parse(text: str, path: Path, *, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = line + getattr(error, "lineno", 1) - 1
        raise DamagedInputError(f"{path}:{where}: is not JSON ({getattr(error, 'msg', error)})") from None


def _exported(folder: Path) -> dict[str, dict[str, int]]:
    """Sizes of exported files as they are on disk; the manifest says which subnet a folder holds."""
    sizes: dict[str, dict[str, int]] = {}
    for manifest in sorted(folder.glob("*/manifest.json")):
        digest = _mapping(manifest).get("subnet_digest")
        if isinstance(digest, str):
            files = (path for path in sorted(manifest.parent.rglob("*")) if path.is_file())
            sizes[digest] = {path.relative_to(manifest.parent).as_posix(): path.stat().st_size for path in files}
    return sizes


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted keys with their values as text."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(data: RunData) -> list[tuple[str, str]]:
    """A few settings for the head of the page, as far as the configuration has them."""
    settings = dict(_flat(yaml.safe_load(data.config))) if data.config else {}
    wanted = {"data set": "data.name", "search": "search.algorithm", "seed": "seed"}
    return [(title, settings[key]) for title, key in wanted.items() if key in settings]


def _duration(seconds: float) -> str:
    """Seconds for readers."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
