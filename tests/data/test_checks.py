import csv
import os

import pytest

from fedmed.data.checks import check_rows, choose_classes, refuse_too_many
from fedmed.data.sources.tables import read_table
from fedmed.errors import DataError
from tests.data.conftest import edit_table, simple_rows, write_image


def reasons(config):
    kept, skipped = check_rows(read_table(config))
    return [row.item for row in kept], {row.place: row.reason for row in skipped}


def test_good_rows_are_kept_in_the_order_of_their_names(make_table):
    kept, skipped = reasons(make_table(list(reversed(simple_rows(6)))))
    assert kept == [f"{number:03d}.png" for number in range(6)]
    assert skipped == {}


def test_every_kind_of_fault(make_table, tmp_path):
    rows = simple_rows(10)
    rows[1]["label"] = ""
    rows[2]["label"] = "B"
    rows[3]["site"] = ""
    rows[4]["file"] = ""
    config = make_table(rows, site_column="site", classes=["a", "b"])
    (tmp_path / "images/005.png").unlink()
    (tmp_path / "images/006.png").write_bytes(b"")
    edit_table(config, lambda text: text + b"z.png\r\n")
    kept, skipped = reasons(config)
    assert kept == ["000.png", "007.png", "008.png", "009.png"]
    assert skipped.pop(4).startswith("label 'B' is not one of the classes a, b.")
    assert skipped == {  # by line of the table; the header is line 1
        3: "no label",
        5: "no site",
        6: "no file name",
        7: "the file does not exist",
        8: "the file cannot be decoded (the file is empty)",
        12: "the row has 1 cells, the header has 5",
    }


def test_unknown_label_names_the_nearest(make_table):
    rows = [*simple_rows(4), {**simple_rows(1)[0], "file": "x.png", "label": "nevis"}]
    _, skipped = reasons(make_table(rows, classes=["a", "b", "nevus"]))
    assert "Did you mean 'nevus'?" in skipped[6]


def test_repeated_file(make_table):
    rows = simple_rows(4)
    _, skipped = reasons(make_table([*rows, {**rows[1], "file": "./001.png"}]))
    assert skipped == {6: "the file is already named in row 3"}


def test_repeated_file_with_different_values_is_left_out_altogether(make_table):
    rows = simple_rows(4)
    kept, skipped = reasons(make_table([*rows, {**rows[1], "label": "b"}]))
    assert "001.png" not in kept
    assert skipped == dict.fromkeys((3, 6), "rows 3, 6 name this file with different values")


def test_two_links_to_one_file_are_a_repetition(make_table, tmp_path):
    rows = simple_rows(4)
    write_image(tmp_path / "images/000.png")
    os.symlink(tmp_path / "images/000.png", tmp_path / "images/x.png")
    _, skipped = reasons(make_table([*rows, {**rows[0], "file": "x.png"}]))
    assert skipped == {6: "the file is already named in row 2"}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("/etc/hostname", "is absolute"),
        ("C:\\x.png", "is absolute"),
        ("../secret.png", "leaves that folder"),
        ("sub/../../secret.png", "leaves that folder"),
        ("../images_too/secret.png", "leaves that folder"),
        ("link.png", "leaves that folder"),
        ("folder/secret.png", "leaves that folder"),
    ],
)
def test_path_outside_the_folder(make_table, tmp_path, file, message):
    config = make_table(simple_rows(4))
    for name in ("secret.png", "images_too/secret.png"):
        write_image(tmp_path / name)
    os.symlink(tmp_path / "secret.png", tmp_path / "images/link.png")
    os.symlink(tmp_path, tmp_path / "images/folder")
    edit_table(config, lambda text: text + f"{file},a,s,p,f\r\n".encode())
    with pytest.raises(DataError, match=f"ImageRow 6 of the table .*{message}.*relative to the folder .*data.root"):
        check_rows(read_table(config))


def test_folder_may_be_a_link_and_paths_may_turn_inside_it(make_table, tmp_path):
    config = make_table(simple_rows(4))
    (tmp_path / "images/sub").mkdir()
    os.symlink(tmp_path / "images", tmp_path / "alias")
    edit_table(config, lambda text: text.replace(b"001.png", b"sub/../001.png"))
    kept, _ = reasons(config.model_copy(update={"root": str(tmp_path / "alias")}))
    assert "001.png" in kept


def test_refusal_names_number_limit_place_and_examples(make_table, tmp_path):
    rows = simple_rows(10)
    for number in (2, 4, 5, 7):
        rows[number]["label"] = ""
    table = read_table(make_table(rows))
    _, skipped = check_rows(table)
    with pytest.raises(DataError, match=r"4 of the 10 rows of the table .* \(40.00%\); the limit is 39.00%") as caught:
        refuse_too_many(table, skipped, 0.39, tmp_path)
    message = str(caught.value)
    assert "data.max_bad_share" in message
    assert str(tmp_path / "skipped_rows.csv") in message
    assert "row 4 '002.png': no label; row 6 '004.png': no label; row 7 '005.png': no label." in message
    with (tmp_path / "skipped_rows.csv").open() as stream:
        assert [list(row.values()) for row in csv.DictReader(stream)] == [
            [str(number + 2), f"00{number}.png", "no label"] for number in (2, 4, 5, 7)
        ]


def test_limit_itself_is_allowed(make_table, tmp_path):
    rows = simple_rows(10)
    rows[0]["label"] = ""
    table = read_table(make_table(rows))
    refuse_too_many(table, check_rows(table)[1], 0.1, tmp_path)
    assert (tmp_path / "skipped_rows.csv").is_file()
    refuse_too_many(table, [], 0.0, tmp_path)
    assert not (tmp_path / "skipped_rows.csv").exists()


def test_classes(make_table):
    table = read_table(make_table(simple_rows(6)))
    kept, _ = check_rows(table)
    assert choose_classes(table, kept) == ("a", "b")
    with pytest.raises(DataError, match=r"only the class 'a'. Allowed: two or more.*data.label_column"):
        choose_classes(table, [row for row in kept if row.label == "a"])


def test_listed_class_without_image(make_table):
    table = read_table(make_table(simple_rows(6), classes=["b", "c", "a"]))
    with pytest.raises(DataError, match=r"no usable image of the class 'c'.*b 2, c 0, a 4"):
        choose_classes(table, check_rows(table)[0])


def test_every_fault_has_its_kind_and_site(make_table, tmp_path):
    rows = simple_rows(8)
    rows[1]["label"] = ""
    rows[2]["label"] = "B"
    rows[4]["file"] = ""
    config = make_table([*rows, {**rows[0], "file": "./000.png"}], site_column="site", classes=["a", "b"])
    (tmp_path / "images/005.png").write_bytes(b"")
    _, skipped = check_rows(read_table(config))
    assert [(row.kind, row.site) for row in skipped] == [
        ("no_label", rows[1]["site"]),
        ("no_class", rows[2]["site"]),
        ("no_file", rows[4]["site"]),
        ("unreadable", rows[5]["site"]),
        ("repeated", rows[0]["site"]),
    ]
