"""The first page: facts that a board reads first, and patients beside images where they are known."""

import json
import re

import torch

from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.metrics.tables import tables_from_logits
from fedmed.report.document import build_document
from fedmed.report.guidelines.page import render_guidelines
from fedmed.report.page import render_page
from tests.report.support.example import make_content, make_tables
from tests.report.support.page_parser import Page


def _first_page(document):
    return Page(re.search(r'<section id="first".*?</section>', render_page(document), re.DOTALL).group())


def test_the_first_page_says_what_a_board_asks_first():
    document = json.loads(json.dumps(build_document(make_content())))
    page = _first_page(document)
    shown = dict(page.numbers)
    assert "To say which of 2 classes an image shows: benign and malignant." in page.text
    assert "Three figures that count" in page.text
    assert shown["/figures/balanced_accuracy/value"] == "0.625"
    assert "0.500 of the images of malignant are recognised" in page.text
    # 40 training images at each site, and all of 10 test images were scored
    assert [shown[f"/flow/total/{part}"] for part in ("train", "validation", "test", "scored")] == [
        "80",
        "10",
        "10",
        "10",
    ]
    assert shown["/flow/sites/north/scored"] == "6"
    assert "What must not be concluded" in page.text
    assert "patients are in the figures" not in page.text


def test_patients_stand_beside_images_where_the_data_has_ids():
    north = make_tables("north", [(0, 0), (0, 0), (0, 1), (1, 1)])
    logits = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    with_ids = tables_from_logits(logits, torch.tensor([0, 0, 0, 1]), ["south"] * 4, ["a", "a", "b", "c"])
    tables = {name: SiteTables({FEDERATED: {"site": own}}) for name, own in (("north", north), ("south", with_ids))}
    document = build_document(make_content(test=tables, validation=tables))
    # of benign: 3 patients at north, where every image is one, and 2 at south
    assert document["flow"]["patients"]["by_class"] == {"benign": 5, "malignant": 2}
    assert document["flow"]["sites"]["south"]["patients"] == 3
    assert document["flow"]["total"]["patients"] == 7
    assert document["flow"]["patients"]["groups"]["site"] == {"north": 4, "south": 3}
    assert "On 8 test images, of 7 patients, of 2 sites" in _first_page(document).text


def test_a_report_of_an_earlier_version_has_a_first_page_without_a_flow():
    document = build_document(make_content())
    del document["flow"]
    words = _first_page(document).text
    assert "Three figures that count" in words
    assert "Which data went in" not in words


def test_the_order_is_first_page_parts_appendix():
    text = render_page(build_document(make_content()))
    order = [text.index(f'id="{anchor}"') for anchor in ("first", "results", "fairness", "appendix", "groups", "run")]
    assert order == sorted(order)


def test_the_worst_class_has_the_interval_that_allows_for_naming_it():
    """Two classes: one right of two, six right of eight; 97.5 % intervals, both of which hold in 95 % of the cases."""
    document = json.loads(json.dumps(build_document(make_content())))
    low, high = document["figures"]["worst_class_recall"]["interval"]
    own = document["figures"]["sensitivity"]["by_class"]["malignant"]["interval"]
    assert low < own[0]
    words = _first_page(document).text
    assert f"the class that does worst ({low:.3f} to {high:.3f}, for all classes at once; 2 images)" in words
    page = Page(render_page(document)).text
    assert "The interval of a class is for this class alone; that of the class that does worst is wider" in page
    assert f"Lowest sensitivity: malignant 0.500 ({low:.3f} to {high:.3f})." in render_guidelines(document)


def test_ids_have_the_word_that_the_settings_give_them():
    logits = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    own = tables_from_logits(logits, torch.tensor([0, 0, 0, 1]), ["north"] * 4, ["a", "a", "b", "c"])
    tables = {"north": SiteTables({FEDERATED: {"site": own}})}
    config = {"name": "example", "data": {"unit": "lesion"}}
    thresholds = {"k": 10, "k_row": 5, "unit": "patients or images"}
    content = make_content(
        test=tables, validation=tables, config=config, thresholds=thresholds, composition=None, history=[]
    )
    document = build_document(content)
    page = Page(render_page(document)).text
    assert "On 4 test images, of 3 lesions, of 1 site" in page
    assert "(sensitivity 1.000, 3 images of 2 lesions)" in page
    assert "withholds groups of fewer than 10 lesions or images" in page
    assert "several images of one lesion, where lesions are known, count as fewer" in page
    assert not re.findall(r"\d patients", page)
    config["data"]["unit"] = "patient"
    assert "On 4 test images, of 3 patients, of 1 site" in Page(render_page(document | {"config": config})).text
