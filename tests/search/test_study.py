"""Trials in an Optuna study, read back with Optuna alone."""

import optuna
import pytest

from hwmodel.errors import QuasarError, UsageError
from search.study import Study
from search.trial import Trial

BELONGS = {"space": "a" * 16, "supernet": "b" * 16}


def trials_of(space, rng, count):
    return [
        Trial(
            index=index,
            generation=index // 2,
            digest=space.decode(genotype).digest,
            genotype=tuple(genotype.tolist()),
            val_accuracy=index / 10,
            val_loss=1.0,
            latency_ms=2.0 + index,
        )
        for index, genotype in enumerate(space.sample(rng, count))
    ]


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path):
    return f"sqlite:///{tmp_path}/studies.db" if request.param == "sqlite" else str(tmp_path / "studies.log")


def opened(storage):
    if "://" in storage:
        return storage
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))


def load(storage, name="digits"):
    return optuna.load_study(study_name=name, storage=opened(storage))


def test_trials_can_be_read_by_optuna(space, rng, storage):
    trials = trials_of(space, rng, 4)
    Study(storage, "digits", space=space, belongs=BELONGS).add(trials)
    study = load(storage)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["score", "latency_ms"]
    assert [t.values for t in study.trials] == [[t.val_accuracy, t.latency_ms] for t in trials]
    assert [t.user_attrs["digest"] for t in study.trials] == [t.digest for t in trials]
    for stored, trial in zip(study.trials, trials, strict=True):
        subnet = space.decode(space.sample(rng, 1)[0] * 0 + trial.genotype)
        assert stored.params["embed_dim"] == subnet.embed_dim
        assert stored.params["depth"] == subnet.depth
        assert stored.params["blocks.0.qkv_ratio"] == subnet.blocks[0].qkv_ratio
        assert stored.params["blocks.0.mlp_ratio"] == subnet.blocks[0].mlp_ratio


def test_parameters_are_the_genes_that_have_a_choice(space, rng, storage):
    Study(storage, "digits", space=space, belongs=BELONGS).add(trials_of(space, rng, 1))
    chosen = {name for name, size in zip(space.gene_names, space.gene_sizes, strict=True) if size > 1}
    assert set(load(storage).trials[0].params) == chosen


def test_no_trial_is_added_twice(space, rng, storage):
    trials = trials_of(space, rng, 5)
    study = Study(storage, "digits", space=space, belongs=BELONGS)
    study.add(trials[:2])
    study.add(trials[:3])
    Study(storage, "digits", space=space, belongs=BELONGS).add(trials)  # of a process that goes on
    assert [t.user_attrs["digest"] for t in load(storage).trials] == [t.digest for t in trials]


@pytest.mark.parametrize("part", list(BELONGS))
def test_a_study_of_something_else_is_refused(space, rng, storage, part):
    Study(storage, "digits", space=space, belongs=BELONGS).add(trials_of(space, rng, 1))
    with pytest.raises(UsageError, match=rf"'digits' in .* belongs to another {part}; choose another search\.study\."):
        Study(storage, "digits", space=space, belongs=BELONGS | {part: "c" * 16})
    Study(storage, "other", space=space, belongs=BELONGS | {part: "c" * 16})


@pytest.mark.parametrize(
    ("directions", "values"), [(["maximize", "minimize"], [[0.0, 0.0]]), (["minimize"], []), (["minimize"], [[0.0]])]
)
def test_a_study_that_is_not_ours_is_refused(space, storage, directions, values):
    study = optuna.create_study(study_name="mine", storage=opened(storage), directions=directions)
    study.add_trials([optuna.trial.create_trial(values=value) for value in values])
    with pytest.raises(UsageError, match="belongs to another space"):
        Study(storage, "mine", space=space, belongs=BELONGS)
    assert len(load(storage, "mine").trials) == len(values)


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("sqlite:////nowhere/at/all/studies.db", "unable to open"),
        ("foo://studies", "foo"),
        ("{damaged}", "Expecting value"),
        ("sqlite:///{damaged}", "not a database"),
        ("{folder}/none/studies.log", "none"),
    ],
)
def test_a_storage_that_cannot_be_used(space, tmp_path, storage, reason):
    damaged = tmp_path / "damaged"
    damaged.write_text("nonsense\n" * 100)
    storage = storage.format(damaged=damaged, folder=tmp_path)
    with pytest.raises(QuasarError, match=rf"search\.study: .*{reason}") as error:
        Study(storage, "digits", space=space, belongs=BELONGS)
    assert "\n" not in str(error.value)
    assert damaged.read_text().startswith("nonsense")
