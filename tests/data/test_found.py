"""Images found and left out: numbers by site and reason, from the splits alone."""

import json

from fedmed.config import PartitionConfig
from fedmed.data import prepare_data
from fedmed.data.checks import SkippedRow
from fedmed.data.found import NO_SITE, count_excluded, read_found
from tests.data.conftest import simple_rows


def _skip(kind: str, site: str) -> SkippedRow:
    return SkippedRow(1, "x.png", "words", kind, site)


def test_rows_are_their_sites_only_where_the_table_says_whose_they_are() -> None:
    skipped = [_skip("no_label", "north"), _skip("no_label", "north"), _skip("unreadable", "")]
    thinned = {"north": 4, "south": 0}
    assert count_excluded(skipped, thinned, "column") == {
        "": {"unreadable": 1},
        "north": {"no_label": 2, "settings": 4},
    }
    cleaned = [_skip("no_label", "St. Mary/1"), _skip("no_label", "???")]
    assert count_excluded(cleaned, {}, "column") == {NO_SITE: {"no_label": 1}, "St._Mary_1": {"no_label": 1}}
    assert count_excluded(skipped, {"pooled": 0}, "pooled") == {"pooled": {"no_label": 2, "unreadable": 1}}
    assert count_excluded(skipped, {}, "dirichlet") == {NO_SITE: {"no_label": 2, "unreadable": 1}}


def test_found_is_kept_and_excluded(make_table, tmp_path):
    rows = simple_rows(30)
    rows[3]["label"] = ""
    config = make_table(rows, site_column="site", max_bad_share=0.5)
    splits = tmp_path / "splits"
    prepared = prepare_data(config, None, 0, splits)
    found = read_found(splits)
    assert found is not None
    site = rows[3]["site"]
    assert found[site]["excluded"] == {"no_label": 1}
    assert {name: sum(own["kept"].values()) + sum(own["excluded"].values()) for name, own in found.items()} == {
        name: sum(row["site"] == name for row in rows) for name in prepared.sites
    }
    pooled = config.model_copy(update={"partition": PartitionConfig(kind="pooled")})
    prepare_data(pooled, None, 0, tmp_path / "other")
    together = read_found(tmp_path / "other")
    assert together is not None
    assert together["pooled"]["excluded"] == {"no_label": 1}
    assert sum(together["pooled"]["kept"].values()) == 29


def test_splits_of_before_say_nothing(make_table, tmp_path):
    config = make_table(simple_rows(30), site_column="site")
    prepare_data(config, None, 0, tmp_path / "splits")
    file = tmp_path / "splits" / "splits.json"
    index = json.loads(file.read_text())
    del index["excluded"]
    file.write_text(json.dumps(index))
    assert read_found(tmp_path / "splits") is None
    assert prepare_data(config, None, 0, tmp_path / "splits").num_bad_rows == 0
    assert read_found(tmp_path / "nothing") is None
