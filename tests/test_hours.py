"""Hours: keys, windows, and how they are floored, split and merged."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trace_pipeline.hours import (
    HOUR,
    HOURS_PER_RUN,
    Window,
    by_day,
    closed_hours,
    floor,
    key_of,
    midnight,
    parse_hour,
    ranges,
)

H9 = datetime(2026, 3, 1, 9, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def hours(*numbers: int) -> list[datetime]:
    return [H9 + n * HOUR for n in numbers]


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(H9, id="its_first_moment"),
        pytest.param(H9 + HOUR - timedelta(microseconds=1), id="its_last_microsecond"),
        pytest.param(datetime(2026, 3, 1, 10, 59, tzinfo=BERLIN), id="another_time_zone"),
        pytest.param(
            datetime(2026, 3, 1, 19, 35, tzinfo=ZoneInfo("Australia/Lord_Howe")) + HOUR / 2,
            id="a_zone_half_an_hour_off",
        ),
    ],
)
def test_a_moment_lies_in_one_utc_hour(at: datetime) -> None:
    assert (floor(at), floor(at).tzinfo) == (H9, UTC)
    assert midnight(at) == datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize("fold", [0, 1])
def test_both_hours_of_a_repeated_local_hour_have_keys_of_their_own(fold: int) -> None:
    local = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold)
    assert key_of(floor(local)) == ("2026-10-25-00:00", "2026-10-25-01:00")[fold]


def test_a_key_is_read_back_as_its_hour() -> None:
    assert key_of(H9) == "2026-03-01-09:00"
    assert parse_hour(key_of(H9)) == H9


@pytest.mark.parametrize("text", ["", "2026-03-01", "2026-03-01-09:30", "2026-03-01-24:00", "now"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an hour such as 2026-03-01-09:00"):
        parse_hour(text)


def test_a_window_is_half_open() -> None:
    window = Window.of(hours(0, 1, 2))
    assert (window.start, window.last, window.end) == (H9, H9 + 2 * HOUR, H9 + 3 * HOUR)
    assert window.hours == hours(0, 1, 2)
    assert window.parameters == {"start": H9, "end": H9 + 3 * HOUR}
    assert Window(H9, H9).hours == []


def test_a_window_in_another_time_zone_has_the_same_hours() -> None:
    assert Window(H9.astimezone(BERLIN), (H9 + HOUR).astimezone(BERLIN)).hours == [H9]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(H9 + timedelta(minutes=1), H9 + HOUR, id="begins_within_an_hour"),
        pytest.param(H9, H9 + timedelta(minutes=1), id="ends_within_an_hour"),
        pytest.param(H9 + HOUR, H9, id="ends_before_it_begins"),
    ],
)
def test_a_window_of_anything_but_whole_hours_is_refused(start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match="no window of whole hours"):
        Window(start, end)


def test_hours_are_split_where_a_utc_day_ends() -> None:
    assert by_day(hours(13, 14, 15, 40)) == [hours(13, 14), hours(15), hours(40)]


@pytest.mark.parametrize(
    ("wanted", "coverable", "gap", "merged"),
    [
        pytest.param([], [], 24, [], id="nothing"),
        pytest.param([2, 0, 1], [], 24, [(0, 2)], id="neighbours"),
        pytest.param(
            [0, 2], [], 24, [(0, 0), (2, 2)], id="an_hour_between_that_may_not_be_covered"
        ),
        pytest.param([0, 2], [1], 24, [(0, 2)], id="an_hour_between_that_may_be_covered"),
        pytest.param([0, 3], [1, 2], 1, [(0, 0), (3, 3)], id="more_hours_between_than_the_gap"),
        pytest.param([*range(30)], [], 24, [(0, 23), (24, 29)], id="more_hours_than_a_run_has"),
    ],
)
def test_hours_are_merged_into_windows(
    wanted: list[int], coverable: list[int], gap: int, merged: list[tuple[int, int]]
) -> None:
    found = ranges(hours(*wanted), hours(*coverable), gap=gap)
    assert found == [Window.of(hours(first, last)) for first, last in merged]


HOUR_SETS = st.sets(st.integers(0, 80).map(lambda n: H9 + n * HOUR))


@given(wanted=HOUR_SETS, coverable=HOUR_SETS, gap=st.integers(0, 30))
def test_ranges_cover_the_wanted_hours_and_no_forbidden_one(
    wanted: set[datetime], coverable: set[datetime], gap: int
) -> None:
    covered: list[datetime] = []
    for window in ranges(wanted, coverable, gap=gap):
        hours = window.hours
        first, last = window.start, window.last
        assert 1 <= len(hours) <= HOURS_PER_RUN
        assert {first, last} <= wanted
        assert wanted.union(coverable).issuperset(hours)
        covered += hours
    assert len(covered) == len(set(covered))
    assert wanted <= set(covered)


@pytest.mark.parametrize(
    ("first", "closed"),
    [
        pytest.param(H9 - 9 * HOUR, [-3, -2, -1], id="a_span_of_three"),
        pytest.param(H9 - 2 * HOUR, [-2, -1], id="fewer_since_the_first"),
        pytest.param(H9, [], id="the_first_is_running"),
        pytest.param(H9 + HOUR, [], id="the_first_lies_ahead"),
    ],
)
def test_the_hours_that_ended_in_a_span(first: datetime, closed: list[int]) -> None:
    now = H9 + HOUR - timedelta(microseconds=1)
    assert closed_hours(first, 3 * HOUR, now) == hours(*closed)
