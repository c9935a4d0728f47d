"""Tables of a page are drawn from the cells' files, and from nothing else."""

import json
import shutil

import pytest

from fedmed.errors import ConfigError
from simulations.studies import readme_tables
from simulations.studies.readme_tables import END, draw_tables, main

FLAGS = "phantom_groups: balanced_accuracy | balanced_accuracy minus influence | flagged age_band | flagged site"


def page(columns, table="old words\n"):
    return f"# A page\n\n<!-- study {columns} -->\n{table}{END}\n\nMore words.\n"


def rows(text):
    """Return the cells of every row but the one under the heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_table_by_hand_from_the_files():
    """Means of the five files' own values, read here without the code that draws."""
    drawn = draw_tables(page(FLAGS))
    folder = readme_tables.README.parent / "phantom_groups"
    cells = [json.loads((folder / f"none-{seed}.json").read_text()) for seed in range(5)]
    mean = sum(cell["figures"]["balanced_accuracy"]["value"] for cell in cells) / 5
    flagged = sum(any(gap.get("flagged") for gap in cell["gaps"]["site"].values()) for cell in cells)
    head, influence, none = rows(drawn)
    assert head[:2] == ["arm", "seeds"]
    assert head[3:] == ["Balanced accuracy, minus `influence`", "Gap flagged (age_band)", "Gap flagged (site)"]
    assert influence[1:2] + influence[3:] == ["5 of 5", "", "5 of 5", "4 of 5"]
    assert none[0] == "`none`: no influence"
    assert none[2].startswith(f"{mean:.3f} (")
    assert none[3].startswith("+0.0")
    assert none[4:] == ["0 of 5", f"{flagged} of 5"]
    assert "10 of 10 cells are done" in drawn
    assert "old words" not in drawn
    assert drawn.startswith("# A page\n") and drawn.endswith("\nMore words.\n")  # noqa: PT018  (one text, both ends)
    assert draw_tables(drawn) == drawn


def test_an_arm_with_one_seed_has_no_interval():
    drawn = draw_tables(page("fopro_kd: balanced_accuracy"))
    (arm,) = [row for row in rows(drawn) if row[0].startswith("`identity_prompt`")]
    assert arm[1] == "1 of 5"
    assert "(" not in arm[2]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("phantom_groups: balanced_acuracy", "balanced_accuracy"),
        ("phantom_groups: balanced_accuracy minus none", "Allowed: .* 'minus influence'"),
        ("phantom_groups: flagged hair", "no groups of 'hair'"),
        ("phantom_group: balanced_accuracy", "phantom_groups"),
    ],
)
def test_what_there_is_not_is_refused(columns, expected):
    with pytest.raises(ConfigError, match=expected):
        draw_tables(page(columns))


def test_a_study_without_a_finished_cell_has_no_table():
    with pytest.raises(ConfigError, match="'fopro_kd_long_tail' has no finished cell"):
        draw_tables(page("fopro_kd_long_tail: balanced_accuracy"))


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ConfigError, match="No table's place"):
        draw_tables("# Nothing here\n")


def test_command_rewrites_the_page(tmp_path, capsys):
    file = tmp_path / "README.md"
    shutil.copy(readme_tables.README, file)
    assert main(["--readme", str(file)]) == 0
    assert "nothing has changed" in capsys.readouterr().out
    file.write_text(file.read_text().replace("0.582", "0.999"))
    assert main(["--readme", str(file)]) == 0
    assert "drawn anew" in capsys.readouterr().out
    assert file.read_text() == readme_tables.README.read_text()


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["--readme", str(tmp_path / "README.md")]) == 1
    assert "cannot be read" in capsys.readouterr().err
