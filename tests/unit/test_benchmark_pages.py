"""The pages of benchmarks say what their raw figures say."""

import copy
import json

from benchmarks import serving

RAW = serving.HERE / "serving.json"


def test_the_page_of_serving_is_made_of_its_raw_figures():
    assert serving.page(json.loads(RAW.read_text())) == (serving.HERE / "serving.md").read_text()


def test_the_median_of_two_rounds_is_between_them():
    results = json.loads(RAW.read_text())
    row = next(one for one in results["rows"] if (one["clients"], one["way"]) == (1, "directly"))
    slow, quick = copy.deepcopy(row), copy.deepcopy(row)
    slow |= {"p50_ms": 4.0, "p99_ms": 8.0, "a_second": 100.0}
    quick |= {"p50_ms": 2.0, "p99_ms": 4.0, "a_second": 300.0}
    others = [one for one in results["rows"] if (one["clients"], one["way"]) != (1, "directly")]
    assert "| 1 | directly | 3.0 ms | 6.0 ms | 200 |" in serving.page(results | {"rows": [slow, quick, *others]})
