"""Traces of budgets: what is read, and what is refused with file and line."""

import pytest

from hwmodel.errors import DamagedInputError, UsageError
from quasar.runtime.trace import read_trace


@pytest.fixture
def trace(tmp_path):
    def make(text):
        path = tmp_path / "trace.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def test_steps_are_read_in_any_order_of_columns(trace):
    read = read_trace(trace("\ufeffenergy_mj, time_s\r\n0.5,0\r\n2e-1,1.5\r\n"))
    assert read.limited == "energy_mj"
    assert [(step.arrival_s, step.budget.energy_mj) for step in read.steps] == [(0.0, 0.5), (1.5, 0.2)]


def test_images_come_at_the_steps_or_at_a_fixed_rate(trace):
    read = read_trace(trace("time_s,latency_ms\n1,5\n1.25,2\n2,7\n"))
    assert [frame.arrival_s for frame in read.frames()] == [1, 1.25, 2]
    frames = read.frames(10)
    assert [round(frame.arrival_s, 9) for frame in frames] == [1 + n / 10 for n in range(11)]
    # a budget holds from its time on, and the last one at the very end
    assert [frame.budget.latency_ms for frame in frames] == [5, 5, 5, 2, 2, 2, 2, 2, 2, 2, 7]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9])
def test_rates_that_are_none_are_refused(trace, fps):
    with pytest.raises(UsageError, match="--fps"):
        read_trace(trace("time_s,latency_ms\n1,5\n2,5\n")).frames(fps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns must be time_s and either latency_ms or energy_mj, not none"),
        ("time,latency_ms\n0,1\n", "line 1: .* not time, latency_ms"),
        ("time_s,latency_ms,energy_mj\n0,1,1\n", "line 1: the columns"),
        ("time_s,latency_ms\n", "line 2: the trace has no steps"),
        ("time_s,latency_ms\n0,1\n1\n", "line 3: a value is missing or too many"),
        ("time_s,latency_ms\n0,1\n1,\n", "line 3: a value is missing or too many"),
        ("time_s,latency_ms\n0,1,2\n", "line 2: a value is missing or too many"),
        ("time_s,latency_ms\n0,1\n\n2,1\n", "line 3: a value is missing or too many"),
        ("time_s,latency_ms\n0,fast\n", "line 2: latency_ms must be a number, not 'fast'"),
        ("time_s,latency_ms\n0,nan\n", "line 2: latency_ms must be finite, not nan"),
        ("time_s,latency_ms\ninf,1\n", "line 2: time_s must be finite, not inf"),
        ("time_s,latency_ms\n-1,1\n", "line 2: time_s must not be negative, not -1"),
        ("time_s,latency_ms\n0,-2\n", "line 2: latency_ms must be positive, not -2"),
        ("time_s,energy_mj\n0,0\n", "line 2: energy_mj must be positive, not 0"),
        ("time_s,latency_ms\n0,1\n2,1\n1,1\n", "line 4: time_s 1 does not come after 2 of the line before"),
        ("time_s,latency_ms\n0,1\n0,2\n", "line 3: time_s 0 does not come after 0"),
        (b"time_s,latency_ms\n0,\xff\n", "cannot be read as a trace"),
    ],
)
def test_bad_lines_are_named(trace, text, message):
    path = trace(text)
    with pytest.raises(DamagedInputError, match=message) as error:
        read_trace(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_mistake_of_usage(tmp_path):
    with pytest.raises(UsageError, match="no such trace"):
        read_trace(tmp_path / "none.csv")
