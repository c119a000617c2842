from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.core.metrics import page, thinned
from services.storage.core.projections import metric_document
from services.storage.core.queries import ANSWER_BYTES_MOST
from shared.events import MetricPoint, OutputBatch, SeriesPart

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def points(*values: float, name: str = "loss") -> list[MetricPoint]:
    return [
        MetricPoint(name=name, value=value, step=step, at=NOW + timedelta(seconds=step))
        for step, value in enumerate(values)
    ]


def test_series_are_summed_up_and_chosen_by_name() -> None:
    found = page(2, [*points(3, 1, 2), *points(9, name="acc")], (), 100)
    assert found.attempt == 2
    assert [(one.name, one.count, one.least, one.greatest, one.last) for one in found.series] == [
        ("loss", 3, 1, 3, 2),
        ("acc", 1, 9, 9, 9),
    ]
    assert [one.at for one in found.points] == sorted(one.at for one in found.points)
    assert [one.name for one in page(1, found.points, ("acc",), 100).points] == ["acc"]
    assert page(1, [], (), 100).points == ()


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(2, 50))
def test_a_thinned_series_has_its_ends_in_order_and_no_more_than_was_asked(values: list[float], most: int) -> None:
    whole = points(*values)
    found = thinned(whole, most)
    assert len(found) == min(len(whole), most)
    assert [one.step for one in found] == sorted({one.step for one in found if one.step is not None})
    assert (found[:1], found[-1:]) == (whole[:1], whole[-1:])


@pytest.mark.parametrize("at", [1, 500, 998])
def test_what_stands_out_is_kept(at: int) -> None:
    values = [0.0] * 1000
    values[at] = 100.0
    assert max(one.value for one in thinned(points(*values), 20)) == 100.0


def test_an_answer_that_would_be_too_large_has_fewer_points() -> None:
    many = [point for number in range(40) for point in points(*range(2000), name=f"series{number}")]
    found = page(1, many, (), 5000)
    assert len(found.to_bytes()) <= ANSWER_BYTES_MOST
    assert len(found.series) == 40
    assert {one.count for one in found.series} == {2000}
    assert len(found.points) >= 40 * 50


def test_parts_of_all_that_was_measured_are_documents_of_their_own() -> None:
    batch = OutputBatch(metrics=tuple(points(1)), final=SeriesPart(index=1, count=2))
    document = metric_document("j1/1/n1", batch)
    assert document
    assert (document["_id"], document["part"], document["parts"]) == ("j1/1/n1/final/1", 1, 2)
    live = metric_document("j1/1/n1", OutputBatch(metrics=tuple(points(1))))
    assert live
    assert "parts" not in live
