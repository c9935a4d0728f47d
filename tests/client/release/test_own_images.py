"""Images found and left out on a site's own page, withdrawals among them."""

from pathlib import Path

from client.hospital.site_data import Hospital
from client.release.own_images import count_parts, find_own
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.client.support.kit import make_kit
from tests.report.support.example import make_content


def test_withdrawn_images_are_left_out_of_what_was_found(tmp_path: Path) -> None:
    config = make_kit(tmp_path)
    site = Hospital(config).open_site()
    number = sum(map(len, (site.data.train, site.data.validation, site.data.test)))
    assert find_own(config, None) == {"north": {"kept": number, "excluded": {}}}
    parts = count_parts(site, site.data.classes)
    assert parts is not None
    assert sum(map(sum, parts["north"].values())) == number
    assert count_parts(site, ("other", "classes")) is None
    path = tmp_path / "withdrawn.txt"
    path.write_text(site.data.train.items[0] + "\n")
    config = config.model_copy(update={"exclude": str(path)})
    assert find_own(config, None) is None, "nobody has counted the images of those who withdrew"
    left = Hospital(config).open_site()
    kept = sum(map(len, (left.data.train, left.data.validation, left.data.test)))
    assert kept < number
    assert find_own(config, left) == {"north": {"kept": kept, "excluded": {"withdrawn": number - kept}}}


def test_page_says_found_and_left_out_with_reasons() -> None:
    found = {
        "north": {"kept": 52, "excluded": {"unreadable": 3, "no_label": 1}},
        "south": {"kept": 48, "excluded": {}},
    }
    document = build_document(make_content(found=found))
    flow = document["flow"]["found"]
    assert flow is not None
    assert (flow["found"], flow["excluded"]) == (104, {"no_label": 1, "unreadable": 3})
    assert flow["sites"]["north"] == {"found": 56, "excluded": {"unreadable": 3, "no_label": 1}}
    page = render_page(document)
    assert "file missing or unreadable" in page
    assert ">Left out<" in page
    nobodys = build_document(make_content(found=found | {"": {"kept": 0, "excluded": {"no_site": 2}}}))["flow"]["found"]
    assert nobodys is not None
    assert (nobodys["found"], nobodys["sites"]) == (106, {})


def test_a_federation_says_that_hospitals_alone_know_it() -> None:
    page = render_page(build_document(make_content(command="flower-server --config server.yaml")))
    assert "known at each hospital alone" in page
    assert "Left out<" not in page
