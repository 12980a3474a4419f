import pytest

from hwmodel import registry
from hwmodel.errors import UsageError
from hwmodel.registry import Registry


class Point:
    def __init__(self, name, load):
        self.name, self.value, self.load = name, f"package:{name}", load


@pytest.fixture
def fruits():
    fruits = Registry("fruit", group="test.fruits")
    fruits.register("apple")(1)
    return fruits


def test_unknown_name_suggests_the_nearest(fruits):
    with pytest.raises(UsageError, match=r"unknown fruit 'aple': did you mean 'apple'\? known: apple"):
        fruits.get("aple")


def test_a_name_is_taken_once(fruits):
    with pytest.raises(ValueError, match="'apple' is registered twice"):
        fruits.register("apple")(2)


def test_entry_points_are_found(fruits, monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("pear", lambda: 7)])
    assert fruits.get("pear") == 7
    assert fruits.names() == ["apple", "pear"]


def test_a_broken_entry_point_fails_by_name_every_time(fruits, monkeypatch):
    def broken():
        raise ImportError("no module named pears")

    points = [Point("plum", lambda: 3), Point("pear", broken)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"plug-in 'pear' \(package:pear\).*no module named pears"):
            fruits.get("apple")


def test_an_entry_point_cannot_take_a_known_name(fruits, monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("apple", lambda: 3)])
    with pytest.raises(UsageError, match="a fruit of that name exists already"):
        fruits.get("apple")
