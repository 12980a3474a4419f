"""Evaluated trials in an Optuna study, for optuna-dashboard and other tools that read one.

A search keeps its own journal and never reads the study: it is a copy, written after each generation. Only measured
subnets go into it, since a write takes a file 30 ms. A study belongs to one space, supernet, validation split and
hardware; trials that it has already are not added again, so a search that goes on, or is repeated, doubles none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial

from hwmodel.errors import QuasarError, UsageError
from search.trial import Trial
from supernet.space import SearchSpace

#: of the study: what its trials belong to, as {part: digest}
_BELONGS = "quasar"
#: of a trial
_DIGEST = "digest"


class Study:
    """A study with the objectives score (up) and latency in ms (down), and a parameter for each gene with a choice.

    Genes of blocks that a subnet does not have show their first choice, as in a canonical genotype.

    Args:
        storage: a database URL such as sqlite:///studies.db, or the path of a journal file.
        name: of the study; it is made if there is none.
        belongs: digests of all that scores and latencies depend on, by what it is: "space", …

    Raises:
        UsageError: a study of this name belongs to something else; no such kind of storage.
        QuasarError: the storage cannot be used.
    """

    def __init__(self, storage: str, name: str, *, space: SearchSpace, belongs: Mapping[str, str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage
        self._genes = dict(zip(space.gene_names, space.gene_choices, strict=True))
        self._distributions: dict[str, BaseDistribution] = {
            gene: CategoricalDistribution(choices) for gene, choices in self._genes.items() if len(choices) > 1
        }
        with self._refusals():
            self._study = optuna.create_study(
                storage=_open(storage), study_name=name, directions=["maximize", "minimize"], load_if_exists=True
            )
            theirs = self._study.user_attrs.get(_BELONGS)
            ours = [direction.name for direction in self._study.directions] == ["MAXIMIZE", "MINIMIZE"]
            if theirs is None and ours and not self._study.trials:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    self._study.set_metric_names(["score", "latency_ms"])
                self._study.set_user_attr(_BELONGS, dict(belongs))
                theirs = dict(belongs)
            self._known = {trial.user_attrs.get(_DIGEST) for trial in self._study.trials}
        differs = [part for part in belongs if theirs is None or theirs.get(part) != belongs[part]]
        if differs:
            raise UsageError(
                f"search.study: the study '{name}' in {storage} belongs to another {differs[0]}; "
                "choose another search.study.name"
            )

    def add(self, trials: Sequence[Trial]) -> None:
        """Adds those that the study does not have; raises `QuasarError` if the storage refuses."""
        fresh = [trial for trial in trials if trial.digest not in self._known]
        with self._refusals():
            self._study.add_trials([self._frozen(trial) for trial in fresh])
        self._known |= {trial.digest for trial in fresh}

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        values = {
            gene: choices[index] for (gene, choices), index in zip(self._genes.items(), trial.genotype, strict=True)
        }
        return create_trial(
            values=[trial.score, trial.latency_ms],
            params={gene: values[gene] for gene in self._distributions},
            distributions=self._distributions,
            user_attrs={_DIGEST: trial.digest, "generation": trial.generation, "complete": trial.complete},
        )

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What a storage raises, which has no common base, as one line."""
        try:
            yield
        except (OSError, ImportError, ValueError, KeyError, RuntimeError, _database_error()) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
            raise QuasarError(
                f"search.study: {self._storage} cannot be used as a study's storage ({reason}); give a URL such as "
                "sqlite:///studies.db or the path of a journal file"
            ) from error


def _open(storage: str) -> str | BaseStorage:
    return storage if "://" in storage else JournalStorage(JournalFileBackend(str(Path(storage).expanduser())))


def _database_error() -> type[Exception]:
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError
