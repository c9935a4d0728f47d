"""Images found and left out on a site's own page, withdrawals among them."""

from pathlib import Path

from client.hospital.site_data import Hospital, Site
from client.release.own_images import count_parts, find_own
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from tests.client.support.kit import make_kit
from tests.report.support.example import make_content


def _count(site: Site) -> dict[str, int]:
    return {part: len(getattr(site.data, part)) for part in ("train", "validation", "test")}


def test_withdrawn_images_are_left_out_of_what_was_found(tmp_path: Path) -> None:
    config = make_kit(tmp_path)
    site = Hospital(config).open_site()
    kept = _count(site)
    assert find_own(config, None) == {"north": {"kept": kept, "excluded": {}}}
    assert {part: sum(classes) for part, classes in count_parts(site)["north"].items()} == kept
    path = tmp_path / "withdrawn.txt"
    path.write_text(site.data.train.items[0] + "\n")
    config = config.model_copy(update={"exclude": str(path)})
    assert find_own(config, None) is None, "nobody has counted the images of those who withdrew"
    left = Hospital(config).open_site()
    withdrawn = sum(kept.values()) - sum(_count(left).values())
    assert withdrawn > 0
    assert find_own(config, left) == {"north": {"kept": _count(left), "excluded": {"withdrawn": withdrawn}}}


def test_page_says_found_and_left_out_with_reasons() -> None:
    found = {
        "north": {"kept": {"train": 40, "validation": 6, "test": 6}, "excluded": {"unreadable": 3, "no_label": 1}},
        "south": {"kept": {"train": 40, "validation": 4, "test": 4}, "excluded": {}},
    }
    document = build_document(make_content(found=found))
    flow = document["flow"]["found"]
    assert flow is not None
    assert (flow["found"], flow["left_out"], flow["excluded"]) == (104, 4, {"no_label": 1, "unreadable": 3})
    assert flow["sites"]["north"] == {"found": 56, "left_out": 4, "excluded": {"unreadable": 3, "no_label": 1}}
    page = render_page(document)
    assert "file missing or unreadable" in page
    assert ">Left out<" in page
    nobodys = build_document(
        make_content(found=found | {"": {"kept": {"train": 0, "validation": 0, "test": 0}, "excluded": {"no_site": 2}}})
    )["flow"]["found"]
    assert nobodys is not None
    assert (nobodys["found"], nobodys["sites"]) == (106, {})


def test_a_federation_says_that_hospitals_alone_know_it() -> None:
    page = render_page(build_document(make_content(command="flower-server --config server.yaml")))
    assert "known at each hospital alone" in page
    assert "Left out<" not in page
