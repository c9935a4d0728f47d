"""The page: the same numbers as the JSON, nothing fetched, nothing from outside believed."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from markupsafe import escape

import fedmed.report
from fedmed.report import write_report
from tests.report.support.example import make_content, make_large_content, make_record, make_site
from tests.report.support.page_parser import Page, resolve

HOSTILE = "</style><script>alert('1')</script><img src=x onerror=alert(1)> & \"a/b~c\" $x_1$"


def write(folder, content):
    page = write_report(folder, content)
    document = json.loads((folder / "report" / "report.json").read_text(), parse_constant=_refuse)
    return document, page.read_text()


def _refuse(name):
    raise AssertionError(f"{name} is no JSON")


def check_numbers(document, page):
    for pointer, shown in page.numbers:
        value = resolve(document, pointer)
        if value is None:
            assert shown.startswith(("n/a", "no image")), pointer
        else:
            number = float(shown.replace(",", ""))
            decimals = len(shown.partition(".")[2])
            assert number == pytest.approx(value, abs=0.5 * 10**-decimals + 1e-12), pointer


def test_every_marked_number_is_the_one_in_the_json(tmp_path):
    document, text = write(tmp_path, make_content())
    page = Page(text)
    assert len(page.numbers) > 150
    check_numbers(document, page)
    shown = {pointer for pointer, _ in page.numbers}
    assert {f"/figures/{key}/value" for key in document["figures"]} <= shown
    assert {f"/sites/{site}/test/{key}/value" for site in ("north", "south") for key in ("auc", "ece")} <= shown
    assert {f"/confusion/sites/south/{row}/{column}" for row in (0, 1) for column in (0, 1)} <= shown
    assert "/composition/north/train/benign" in shown
    assert "/participation/sites/south/missed_rounds" in shown


@pytest.mark.parametrize("step", [None, {"kind": "average"}, {"kind": "fedadam", "lr": 0.01, "tau": 0.001}])
def test_a_step_of_the_server_is_said_where_the_settings_are(tmp_path, step):
    content = make_content()
    content = dataclasses.replace(content, config={**content.config, "server_step": step})
    words = Page(write(tmp_path, content)[1]).text
    said = "a step towards it: fedadam (lr 0.01, tau 0.001)"
    assert (said in words) == (step is not None and step["kind"] == "fedadam")


def test_summary_says_the_findings(tmp_path):
    _, text = write(tmp_path, make_content())
    summary = re.search(r'<p class="summary">.*?</p>', text, re.DOTALL).group()
    words = Page(summary).text
    assert "Of 3 rounds, round 2 was chosen by its pooled balanced accuracy" in words
    assert "On 10 test images of 2 sites it reaches a balanced accuracy of 0.625" in words
    assert "guessing would give 0.50" in words
    assert "recognised least often is malignant (sensitivity 0.500, 2 images)" in words
    assert "highest at north (0.900, 6 images) and lowest at south (0.333, 4 images)" in words
    assert "1 of 2 sites missed at least one round" in words


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    _, text = write(tmp_path, make_content())
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form", "base"})
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src"):
                assert value.startswith("#"), (tag, value)
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)


def test_names_from_outside_stay_text(tmp_path):
    tables = make_site(HOSTILE, [(0, 0), (1, 1), (1, 0)])
    content = make_content(
        title=HOSTILE,
        classes=(HOSTILE, "other"),
        test={HOSTILE: tables},
        validation={HOSTILE: tables},
        composition={HOSTILE: {"train": [1, 2]}},
        history=[make_record(1, {HOSTILE: "accepted"}), make_record(2, {HOSTILE: HOSTILE})],
        config={HOSTILE: HOSTILE},
        environment={HOSTILE: {HOSTILE: HOSTILE}},
        notes=[HOSTILE],
        command=HOSTILE,
    )
    document, text = write(tmp_path, content)
    page = Page(text)
    check_numbers(document, page)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) > 10


def test_a_lone_surrogate_in_a_name_does_not_stop_the_page(tmp_path):
    _, text = write(tmp_path, make_content(title="a\ud800b", notes=["\u4e2d\u6587 \u202ername"]))
    assert "<title>a?b</title>" in text


def test_missing_figures_say_why(tmp_path):
    only_benign = make_site("north", [(0, 0), (0, 0)])
    document, text = write(tmp_path, make_content(test={"north": only_benign}))
    page = Page(text)
    check_numbers(document, page)
    auc = document["figures"]["auc"]
    assert auc["value"] is None
    assert dict(page.numbers)["/figures/auc/value"] == f"n/a ({auc['reason']})"
    assert dict(page.numbers)["/figures/sensitivity/by_class/malignant/value"] == "n/a (no image of this class)"
    assert dict(page.numbers)["/sites/south/test/accuracy/value"].startswith("n/a (")
    assert "Not defined without images of the class and of others: benign, malignant." in page.text


def test_a_run_without_any_answer_has_a_page(tmp_path):
    content = make_content(
        test={}, validation={}, history=[], composition=None, rounds_done=0, notes=[], environment={}
    )
    document, text = write(tmp_path, content)
    check_numbers(document, Page(text))
    assert "No round is recorded." in text
    assert 'id="composition"' not in text
    assert 'id="participation"' not in text


def test_banners(tmp_path):
    _, real = write(tmp_path / "real", make_content())
    _, phantom = write(tmp_path / "phantom", make_content(synthetic=True))
    assert "Research software, not a medical device" in real
    assert "Research software, not a medical device" in phantom
    assert "Synthetic phantom images, not medical data" in phantom
    assert "Synthetic" not in real


def test_composition_only_when_given(tmp_path):
    _, text = write(tmp_path, make_content(composition=None))
    assert 'id="composition"' not in text
    assert 'data-key="/sites/north/train_images">40<' in text


def test_headings_anchors_and_tables_are_accessible(tmp_path):
    _, text = write(tmp_path, make_content())
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= set(ids)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")


def test_thresholds_are_named(tmp_path):
    _, text = write(tmp_path, make_content(thresholds={"k": 10, "k_row": 5, "k_bin": 4}))
    words = Page(text).text
    assert "Thresholds count patients where a site's data names them, and images where it does not." in words
    assert (
        "withholds groups of fewer than 10 patients or images, bins of fewer than 4, and classes of fewer than 5 "
        "patients or images within a group" in words
    )
    assert "Hospitals tell less of this." in words
    (tmp_path / "open").mkdir()
    _, text = write(tmp_path / "open", make_content())
    assert "Hospitals tell less of this." not in Page(text).text


@pytest.mark.parametrize("unit", ["patients", "images", "patients or images", None])
def test_thresholds_are_named_with_what_they_count(tmp_path, unit):
    thresholds = {"k": 10, "k_row": 5, **({} if unit is None else {"unit": unit})}
    _, text = write(tmp_path, make_content(thresholds=thresholds))
    words, what = Page(text).text, unit or "patients or images"
    assert f"withholds groups of fewer than 10 {what}, and classes of fewer than 5 {what} within a group" in words
    assert ("count patients where a site's data names them" in words) is (unit in ("patients or images", None))


def test_a_unit_from_outside_is_only_text(tmp_path):
    _, text = write(tmp_path, make_content(thresholds={"k": 10, "k_row": 5, "unit": "<script>"}))
    assert "fewer than" in text
    assert "<script>" not in text.replace("&lt;script", "")


def test_same_content_gives_the_same_bytes(tmp_path):
    first, second = (write_report(tmp_path / name, make_content()) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_name("report.json").read_bytes() == second.with_name("report.json").read_bytes()
    assert sorted(file.name for file in first.parent.iterdir()) == ["index.html", "report.json", "tripod_ai.md"]


@pytest.mark.parametrize("num_sites", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_many_sites_and_rounds_give_a_page_of_sane_size(tmp_path, num_sites):
    document, text = write(tmp_path, make_large_content(num_sites=num_sites, num_rounds=50, num_classes=5))
    assert len(text) < 1_000_000
    assert len(json.dumps(document)) < 3_000_000
    page = Page(text)
    check_numbers(document, page)
    small = [a for tag, a in page.tags if tag == "table" and a.get("class") == "small matrix"]
    assert len(small) == 12
    assert f"The other {num_sites - 12} sites" in text
    assert {f"/sites/site_{index:03d}/test/auc/value" for index in range(num_sites)} <= {key for key, _ in page.numbers}


def test_no_template_switches_escaping_off_and_no_section_writes_html():
    """What is put into a page is escaped at one place, so no file may go around it."""
    root = Path(fedmed.report.__file__).parent
    templates = sorted((root / "templates").glob("*.html"))
    assert len(templates) > 15
    for file in templates:
        assert not re.search(r"\|\s*safe|autoescape|Markup", file.read_text()), file.name
    for file in sorted((root / "sections").rglob("*.py")):
        assert not re.search(r"</?[a-z]+[ >]|Markup\(", file.read_text()), file.name


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\"b'c", "\u202eevil\u202c", "{{ num }}", "{% raw %}"])
def test_a_hostile_name_of_a_site_is_shown_as_it_is(tmp_path, name):
    tables = make_site(name, [(0, 0), (1, 1), (1, 0)])
    history = [make_record(1, {name: "accepted"}), make_record(2, {name: "late"})]
    content = make_content(test={name: tables}, validation={name: tables}, composition=None, history=history)
    document, text = write(tmp_path, content)
    page = Page(text)
    check_numbers(document, page)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert page.text.count(name) > 3
    # names stand in elements of their own, so that marks of direction end with them
    assert re.search(rf"<bdi>{re.escape(str(escape(name)))}</bdi>", text)
