"""The file of evaluations: what comes back, what matches, and what is damaged."""

import numpy as np
import pytest

from hwmodel.errors import DamagedInputError
from search.cache import EvaluationCache
from search.record import Record


def record(images, *, complete=True, seed=0, kl=False):
    rng = np.random.default_rng(seed)
    correct = rng.random(images) < 0.5
    looks = tuple((n, n / 3) for n in (4, 8) if n < images)
    return Record(
        correct=correct,
        looks=(*looks, (images, images / 3)),
        complete=complete,
        divergence=rng.random(images, dtype=np.float32) if kl else None,
    )


def same(first, second):
    return (
        np.array_equal(first.correct, second.correct)
        and first.looks == second.looks
        and first.complete == second.complete
        and (first.divergence is None) == (second.divergence is None)
        and (first.divergence is None or first.divergence.tobytes() == second.divergence.tobytes())
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluations.jsonl"


@pytest.fixture
def open_cache(path):
    def make(**changes):
        return EvaluationCache(path, **({"checkpoint": "c", "data": "d", "batch_size": 4} | changes))

    return make


def test_records_come_back(open_cache, path):
    cache = open_cache()
    assert not path.exists()
    cache.put("a", record(13))
    cache.put("b", record(8, complete=False))
    for again in (cache, open_cache()):
        assert same(again.get("a"), record(13))
        assert same(again.get("b"), record(8, complete=False))
        assert again.get("c") is None
    evaluation = open_cache().get("a").evaluation
    assert evaluation.accuracy == record(13).correct.mean()
    assert (evaluation.loss, evaluation.images) == (pytest.approx(1 / 3), 13)


def test_more_images_replace_fewer_and_nothing_is_written_twice(open_cache, path):
    cache = open_cache()
    short, whole = record(13).until(1), record(13)
    assert len(short.correct) == 4
    assert not short.complete
    for item in (short, short, whole, short, whole):
        cache.put("a", item)
    assert len(path.read_text().splitlines()) == 2
    assert same(open_cache().get("a"), whole)


@pytest.mark.parametrize("changes", [{"checkpoint": "x"}, {"data": "x"}, {"batch_size": 5}])
def test_another_checkpoint_other_data_or_other_batches_do_not_match(open_cache, changes):
    open_cache().put("a", record(13))
    assert open_cache(**changes).get("a") is None
    open_cache(**changes).put("a", record(9))
    assert same(open_cache().get("a"), record(13))


def test_divergences_come_back_and_answer_for_accuracies(open_cache):
    by_kl = open_cache(signal="kl")
    by_kl.put("a", record(13, kl=True))
    by_kl.put("b", record(13, kl=True).until(1))
    for signal in ("kl", "accuracy"):
        assert same(open_cache(signal=signal).get("a"), record(13, kl=True))
        assert same(open_cache(signal=signal).get("b"), record(13, kl=True).until(1))
    assert record(13, kl=True).kl == pytest.approx(record(13, kl=True).divergence.mean())


def test_records_without_divergences_do_not_answer_for_them(open_cache, path):
    open_cache().put("a", record(13))
    by_kl = open_cache(signal="kl")
    assert by_kl.get("a") is None
    by_kl.put("a", record(13, kl=True).until(1))
    assert same(open_cache().get("a"), record(13))  # it knows all images
    assert same(open_cache(signal="kl").get("a"), record(13, kl=True).until(1))
    open_cache().put("a", record(13))
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"correct"', '"correc"'),
        ('"images": 13', '"images": 30'),
        ('"images": 13', '"images": "x"'),
        ('"checkpoint"', '"check"'),
        ("[4, ", "[14, "),
        ("{", ""),
        ('"correct": "', '"correct": "*'),
        ('"divergence": "', '"divergence": "AAAAAA'),
    ],
)
def test_damaged_lines_are_named(open_cache, path, old, new):
    open_cache().put("a", record(13, kl=True))
    line = path.read_text()
    assert old in line
    path.write_text(line + line.replace(old, new, 1))
    with pytest.raises(DamagedInputError, match=r"evaluations\.jsonl:2: is not an evaluation"):
        open_cache()


def test_a_line_without_its_end_is_cut_off(open_cache, path):
    open_cache().put("a", record(13))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert same(open_cache().get("a"), record(13))
    assert path.read_bytes() == whole
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DamagedInputError, match="cannot be read as text"):
        open_cache()
