"""The contract of executors, and what a pool does about workers that end; actors of Ray are slow to start."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hwmodel.errors import DamagedInputError, QuasarError, WorkerLostError
from search.cache import EvaluationCache
from search.config import RacingConfig, SearchConfig, Target
from search.evaluator import SupernetEvaluator
from search.executor import RETRIES, LocalExecutor, PoolExecutor
from search.measurer import Measurer, Task, float_reference
from search.run import run_search
from supernet.data.config import DataConfig
from supernet.data.splits import open_train

RACING = RacingConfig(images=1, margin=0.3)  # a network that is not trained guesses: no other margin drops anything
BATCH = 36


class ThreadWorker:
    """A worker that is a thread; `plan` says of a task by its place how often the worker ends over it."""

    def __init__(self, measure, plan=None):
        self._measure = measure
        self._plan = plan
        self._thread = ThreadPoolExecutor(1)

    def start(self, task):
        if self._plan and self._plan.get(task, 0) > 0:
            self._plan[task] -= 1
            lost = Future()
            lost.set_exception(WorkerLostError("ended"))
            return lost
        return self._thread.submit(self._measure, task)

    def result(self, future):
        return future.result()


class Hall:
    """Hires workers that echo their task after a random while, and watches them."""

    def __init__(self, plan=None):
        self.plan = plan
        self.hired = 0
        self.measured = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._rng = np.random.default_rng(0)

    def hire(self):
        self.hired += 1
        return ThreadWorker(self._measure, self.plan)

    def _measure(self, task):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            pause = self._rng.exponential(0.002)
        time.sleep(pause)
        with self._lock:
            self._now -= 1
            self.measured.append(task)
        return f"record {task}"


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_a_pool_gives_all_records_in_order_and_measures_each_task_once(count):
    hall = Hall()
    pool = PoolExecutor(hall.hire, count=count)
    for tasks in (range(30), range(30, 33), range(0)):
        assert list(pool.records(tasks)) == [f"record {task}" for task in tasks]
    assert sorted(hall.measured) == list(range(33))
    assert hall.hired == count
    assert hall.most <= count
    assert hall.most > 1 or count == 1


def test_no_worker_is_hired_without_a_task():
    hall = Hall()
    assert list(PoolExecutor(hall.hire, count=3).records([])) == []
    assert hall.hired == 0


@pytest.mark.parametrize("count", [1, 3])
def test_the_task_of_a_worker_that_has_ended_goes_to_a_new_one(count):
    hall = Hall(plan={0: RETRIES, 7: 1, 11: RETRIES})
    assert list(PoolExecutor(hall.hire, count=count).records(range(12))) == [f"record {task}" for task in range(12)]
    assert sorted(hall.measured) == list(range(12))
    assert hall.hired == count + 2 * RETRIES + 1


def test_a_task_over_which_too_many_workers_end_is_given_up_in_one_line(space):
    tasks = [Task(subnet=space.smallest()), Task(subnet=space.largest())]
    hall = Hall(plan={tasks[1]: RETRIES + 1})
    line = rf"search: {RETRIES + 1} workers in turn have ended over subnet {space.largest().digest} \(ended\); continue"
    with pytest.raises(QuasarError, match=line):
        list(PoolExecutor(hall.hire, count=2).records(tasks))


def test_an_error_of_a_task_is_raised_as_it_is():
    def measure(task):
        raise DamagedInputError("no image")

    pool = PoolExecutor(lambda: ThreadWorker(measure), count=2)
    with pytest.raises(DamagedInputError, match="no image"):
        list(pool.records(range(3)))


def differing(ours, theirs):
    """The names of what differs between two records."""
    first, second = ours.to_dict(), theirs.to_dict()
    return [name for name in first | second if first.get(name) != second.get(name)]


@pytest.fixture
def split():
    return open_train(DataConfig(name="digits", val_fraction=0.2), image_size=8, seed=0)[1]


@pytest.fixture(params=["accuracy", "kl"])
def build(request, supernet, split):
    """Makes what measures the small supernet on the validation split of the digits."""
    reference = None
    if request.param == "kl":
        reference = float_reference(supernet, split, batch_size=BATCH, progress=lambda *_: None)
    build = partial(Measurer, supernet, split, batch_size=BATCH, reference=reference, racing=RACING)
    build.signal = request.param
    return build


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # by default workers give way to all that runs beside them
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.fixture(params=["pool", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request, build):
    """Every executor that is to measure as `LocalExecutor` does."""
    if request.param == "pool":
        yield PoolExecutor(lambda: ThreadWorker(build()), count=3)
        return
    request.getfixturevalue("cluster")
    from search.ray_executor import ray_executor

    with ray_executor(build, count=2, cpus=1, gpus=0) as executor:
        yield executor


def test_records_are_those_of_a_local_executor(executor, build, space, rng):
    local = LocalExecutor(build())
    best, *_ = local.records([Task(subnet=space.largest())])
    subnets = [space.decode(genotype) for genotype in space.sample(rng, 8)]
    tasks = [Task(subnet=subnet, best=best, seen=i % 2) for i, subnet in enumerate(subnets)]
    tasks.append(Task(subnet=subnets[0]))
    ours, theirs = list(executor.records(tasks)), list(local.records(tasks))
    assert [differing(*pair) for pair in zip(ours, theirs, strict=True)] == [[]] * len(tasks)
    assert {record.complete for record in ours} == {True, False}


def test_a_search_ends_in_the_same_files(executor, build, space, cost_model, bounds, tmp_path):
    spread = bounds.slowest_ms - bounds.fastest_ms
    targets = tuple(Target(latency_ms=bounds.fastest_ms + share * spread) for share in (0.4, 1.0))
    files = {}
    for name, measuring in (("local", LocalExecutor(build())), ("other", executor)):
        cache = EvaluationCache(
            tmp_path / f"{name}-evaluations", checkpoint="c", data="d", batch_size=BATCH, signal=build.signal
        )
        result = run_search(
            space=space,
            model=cost_model,
            config=SearchConfig(targets=targets, evaluations=30, population=8, signal=build.signal),
            evaluator=SupernetEvaluator(measuring, cache, racing=RACING),
            journal=tmp_path / name,
            seed=0,
            progress=lambda *_: None,
        )
        assert len(result.trials) == 30
        files[name] = [(tmp_path / file).read_bytes() for file in (name, f"{name}-evaluations")]
    assert [ours == theirs for ours, theirs in zip(*files.values(), strict=True)] == [True, True]


def killing(path, supernet, split):
    """Builds a measurer for an actor that kills itself at its third task, unless one has done so before."""
    measure = Measurer(supernet, split, batch_size=BATCH)
    done = 0

    def measured(task):
        nonlocal done
        done += 1
        if done == 3:
            try:
                Path(path).touch(exist_ok=False)
            except FileExistsError:
                return measure(task)
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(task)

    return measured


@pytest.mark.slow
def test_an_actor_that_is_killed_is_replaced(cluster, supernet, split, space, rng, tmp_path):
    from search.ray_executor import ray_executor

    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors cannot import it
    marker = tmp_path / "killed"
    tasks = [Task(subnet=space.decode(genotype)) for genotype in space.sample(rng, 12)]
    with ray_executor(partial(killing, str(marker), supernet, split), count=2, cpus=1, gpus=0) as executor:
        ours = list(executor.records(tasks))
    assert marker.exists()
    theirs = LocalExecutor(Measurer(supernet, split, batch_size=BATCH)).records(tasks)
    assert [differing(*pair) for pair in zip(ours, theirs, strict=True)] == [[]] * len(tasks)
