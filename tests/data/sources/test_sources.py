import numpy as np
import pytest
import torch

from fedmed.config import ClassFolderData, NpzData
from fedmed.data.sources.bands import are_measurements, clean_value, find_quartiles, name_band, read_number
from fedmed.data.sources.npz import open_npz_images
from fedmed.data.sources.tables import read_table
from fedmed.errors import ConfigError, DataError
from tests.data.conftest import edit_table, simple_rows, write_image


class TestImageTable:
    def test_rows(self, make_table):
        config = make_table(
            [
                {"file": "x/1.png", "label": " a ", "site": "s", "patient": "p", "sex": "", "age": "5"},
                {"file": "./2.png", "label": "b", "site": "s", "patient": "", "sex": "f", "age": "6"},
            ],
            site_column="site",
            group_column="patient",
            attribute_columns=["sex", "age"],
        )
        table = read_table(config)
        first, second = table.rows
        assert (first.place, first.item, first.label, first.site, first.group) == (2, "x/1.png", "a", "s", "p")
        assert first.attributes == ("unknown", "5")
        assert (second.item, second.group, second.attributes) == ("2.png", "", ("f", "6"))
        assert table.attribute_names == ("sex", "age")

    def test_numbers_become_bands(self, make_table):
        ages = ["", "39", "40", " 59.9 ", "60", "85", "-1", "old", "nan", "inf", "4e1"]
        rows = [{"file": f"{i}.png", "label": "ab"[i % 2], "age": age, "sex": "f"} for i, age in enumerate(ages)]
        config = make_table(rows, attribute_columns=["sex", "age"], bands={"age": [40, 60]})
        expected = ["unknown", "<40", "40-59", "40-59", ">=60", ">=60", "<40", "unknown", "unknown", "unknown", "40-59"]
        assert [row.attributes for row in read_table(config).rows] == [("f", band) for band in expected]

    def test_what_stands_for_an_unknown_value(self, make_table):
        values = ["NA", "nan", "NaN", "None", "n/a", "N/A", " - ", "", "null", "Unknown", "Nancy", "-1"]
        rows = [{"file": f"{i}.png", "label": "ab"[i % 2], "sex": value} for i, value in enumerate(values)]
        found = [row.attributes[0] for row in read_table(make_table(rows, attribute_columns=["sex"])).rows]
        assert found == ["unknown"] * 10 + ["Nancy", "-1"]
        assert clean_value(" female ") == "female"

    def test_decimal_comma(self, make_table):
        rows = [{"file": f"{i}.png", "label": "ab"[i % 2], "age": age} for i, age in enumerate(["70,0", "39,5", "41"])]
        config = make_table(rows, attribute_columns=["age"], bands={"age": [40, 60]})
        assert [row.attributes for row in read_table(config).rows] == [(">=60",), ("<40",), ("40-59",)]

    def test_two_kinds_of_decimals_are_refused(self, make_table):
        rows = [{"file": f"{i}.png", "label": "ab"[i % 2], "age": age} for i, age in enumerate(["70,0", "39.5", "41"])]
        with pytest.raises(
            DataError, match=r"'age'.*1 numbers with a decimal point and 1 with a decimal comma\. Allowed"
        ):
            read_table(make_table(rows, attribute_columns=["age"]))

    @pytest.mark.parametrize(
        ("edges", "value", "band"),
        [([1.5, 2.5], "2", "1.5 to <2.5"), ([1, 2, 3], "2", "2"), ([0.5], "0.5", ">=0.5"), ([-3, 0], "-3", "-3--1")],
    )
    def test_names_of_bands(self, edges, value, band):
        assert name_band(value, [float(edge) for edge in edges]) == band

    @pytest.mark.parametrize(
        ("bands", "message"),
        [
            ({"agee": [40]}, r"names the column 'agee', which is not in data.attribute_columns.*Did you mean 'age'"),
            ({"age": [60, 40]}, r"the edges \[60.0, 40.0\] for 'age'\. Allowed: increasing numbers"),
            ({"age": [40, 40]}, "Allowed: increasing numbers, each once"),
        ],
    )
    def test_bands_that_cannot_be(self, make_table, bands, message):
        rows = [{"file": "1.png", "label": "a", "age": "5"}, {"file": "2.png", "label": "b", "age": "50"}]
        with pytest.raises(ConfigError, match=message):
            read_table(make_table(rows, attribute_columns=["age"], bands=bands))

    def test_byte_order_mark_and_blank_lines(self, make_table):
        config = make_table(simple_rows(2))
        edit_table(config, lambda text: b"\xef\xbb\xbf" + text + b"\r\n\r\n")
        assert len(read_table(config).rows) == 2

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"label_column": "labels"}, r"no column 'labels' \(data.label_column\). Did you mean 'label'\?.*patient"),
            ({"file_column": "fil"}, r"data.file_column.*Did you mean 'file'"),
            ({"site_column": "Site"}, r"data.site_column.*Did you mean 'site'"),
            ({"group_column": "patients"}, r"data.group_column.*Did you mean 'patient'"),
            ({"attribute_columns": ["sex", "agee"]}, r"'agee' \(data.attribute_columns\)"),
        ],
    )
    def test_missing_column(self, make_table, settings, message):
        with pytest.raises(DataError, match=message):
            read_table(make_table(simple_rows(4), **settings))

    def test_other_separator(self, make_table):
        config = make_table(simple_rows(4))
        edit_table(config, lambda text: text.replace(b",", b";"))
        with pytest.raises(DataError, match="separated by ';': save it with commas"):
            read_table(config)

    def test_wrong_number_of_cells_is_a_fault_of_the_row(self, make_table):
        config = make_table(simple_rows(2))
        edit_table(config, lambda text: text + b"z.png,a\r\n")
        assert read_table(config).rows[2].fault == "the row has 2 cells, the header has 5"

    def test_repeated_column(self, make_table):
        config = make_table(simple_rows(1))
        edit_table(config, lambda _: b"file,label,label\r\nx.png,a,b\r\n")
        with pytest.raises(DataError, match="'label' occurs more than once"):
            read_table(config)

    def test_not_text(self, make_table):
        config = make_table(simple_rows(1))
        edit_table(config, lambda _: b"file,label\r\n\xff\xfe.png,a\r\n")
        with pytest.raises(DataError, match="UTF-8"):
            read_table(config)

    def test_empty_table(self, make_table):
        config = make_table(simple_rows(1))
        edit_table(config, lambda _: b"file,label\r\n")
        with pytest.raises(DataError, match="a header and no row"):
            read_table(config)

    def test_missing_table_names_those_that_are_there(self, make_table):
        config = make_table(simple_rows(1), table="label.csv")
        with pytest.raises(DataError, match=r"label.csv' .*does not exist. Did you mean 'labels.csv'\?"):
            read_table(config)

    def test_missing_folder(self, make_table, tmp_path):
        config = make_table(simple_rows(1)).model_copy(update={"root": str(tmp_path / "nowhere")})
        with pytest.raises(DataError, match=r"nowhere' \(data.root\) does not exist"):
            read_table(config)
        config = config.model_copy(update={"root": str(tmp_path / "images" / "labels.csv")})
        with pytest.raises(DataError, match="is a file, not a folder"):
            read_table(config)

    @pytest.mark.parametrize("classes", [[], ["a"], ["a", "a"], ["a", " "]])
    def test_unusable_class_list(self, make_table, classes):
        with pytest.raises(DataError, match="two or more different names"):
            read_table(make_table(simple_rows(4), classes=classes))

    def test_attribute_named_twice(self, make_table):
        with pytest.raises(ConfigError, match="twice: sex, sex"):
            read_table(make_table(simple_rows(4), attribute_columns=["sex", "sex"]))


class TestClassFolders:
    def test_rows(self, tmp_path):
        for name in ("cat/1.png", "cat/deep/2.PNG", "ant/1.jpg", "ant/.hidden.png", "ant/Thumbs.db", "3.png"):
            write_image(tmp_path / name.replace(".db", ".png"))
        (tmp_path / "ant/Thumbs.png").rename(tmp_path / "ant/Thumbs.db")
        (tmp_path / ".git").mkdir()
        table = read_table(ClassFolderData(source="class_folders", root=str(tmp_path)))
        assert table.classes == ("ant", "cat")
        assert [(row.item, row.label) for row in table.rows] == [
            ("ant/1.jpg", "ant"),
            ("cat/1.png", "cat"),
            ("cat/deep/2.PNG", "cat"),
        ]

    def test_order_of_classes(self, tmp_path):
        write_image(tmp_path / "a/1.png")
        config = ClassFolderData(source="class_folders", root=str(tmp_path), classes=["b", "a"])
        assert read_table(config).classes == ("b", "a")

    def test_no_folders_or_no_files(self, tmp_path):
        config = ClassFolderData(source="class_folders", root=str(tmp_path))
        with pytest.raises(DataError, match="one folder per class"):
            read_table(config)
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        with pytest.raises(DataError, match="all class folders are empty: a, b"):
            read_table(config)


class TestNpz:
    IMAGES = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)

    def config(self, tmp_path, settings=None, **arrays):
        path = tmp_path / "data.npz"
        labels = np.array([0, 1, 1, 0])
        np.savez(path, **{"images": self.IMAGES, "labels": labels, "class_names": np.array(["no", "yes"])} | arrays)
        return NpzData(source="npz", file=str(path), **(settings or {}))

    def test_rows(self, tmp_path):
        table = read_table(self.config(tmp_path))
        assert table.classes == ("no", "yes")
        assert [(row.item, row.label) for row in table.rows] == [("0", "no"), ("1", "yes"), ("2", "yes"), ("3", "no")]

    @pytest.mark.parametrize("shape", [(4, 2, 3), (4, 2, 3, 1)])
    def test_grey_images(self, tmp_path, shape):
        images = open_npz_images(self.config(tmp_path, images=self.IMAGES.reshape(shape)))
        assert images.shape == (4, 3, 2, 3)
        for channel in range(3):
            assert torch.equal(images[:, channel], torch.from_numpy(self.IMAGES))

    def test_colour_images(self, tmp_path):
        colour = np.arange(4 * 2 * 5 * 3, dtype=np.uint8).reshape(4, 2, 5, 3)
        assert torch.equal(open_npz_images(self.config(tmp_path, images=colour))[1, 2], torch.tensor(colour[1, ..., 2]))

    def test_without_names_and_with_columns_of_labels(self, tmp_path):
        config = self.config(tmp_path, {"class_names_key": None}, labels=np.array([[7], [2], [2], [7]]))
        table = read_table(config)
        assert table.classes == ("2", "7")
        assert [row.label for row in table.rows] == ["7", "2", "2", "7"]

    def test_label_without_name_is_no_class(self, tmp_path):
        table = read_table(self.config(tmp_path, labels=np.array([0, 1, 5, -1])))
        assert [row.label for row in table.rows] == ["no", "yes", "number 5", "number -1"]

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": IMAGES.astype(np.float32)}, "images 'images' are float32.*Allowed: uint8"),
            ({"images": IMAGES[0]}, r"of shape \(2, 3\)"),
            ({"images": np.zeros((4, 2, 3, 4), np.uint8)}, "N x H x W x 3"),
            ({"labels": np.zeros(3, int)}, "one for each of the 4 images"),
            ({"labels": np.zeros(4)}, "float64.*Allowed: integers"),
            ({"class_names": np.array(["a", "a"])}, "different names"),
        ],
    )
    def test_wrong_arrays(self, tmp_path, arrays, message):
        with pytest.raises(DataError, match=message):
            read_table(self.config(tmp_path, **arrays))

    def test_missing_key(self, tmp_path):
        with pytest.raises(DataError, match=r"'image' \(data.images_key\). Did you mean 'images'\?.*labels"):
            read_table(self.config(tmp_path, {"images_key": "image"}))

    def test_wrong_file(self, tmp_path):
        config = self.config(tmp_path)
        (tmp_path / "data.npz").write_bytes(b"PK nonsense")
        with pytest.raises(DataError, match="cannot be read"):
            read_table(config)
        np.save(tmp_path / "one.npy", self.IMAGES)
        with pytest.raises(DataError, match="is one array"):
            read_table(NpzData(source="npz", file=str(tmp_path / "one.npy")))
        with pytest.raises(DataError, match=r"\(data.file\) does not exist"):
            read_table(NpzData(source="npz", file=str(tmp_path / "none.npz")))


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("70,0", 70.0),
            (" 1.5e1", 15.0),
            ("-.5", -0.5),
            ("1_0", None),
            ("1,5,0", None),
            ("inf", None),
            ("1e999", None),
        ],
    )
    def test_read(self, text, number):
        assert read_number(text) == number

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([str(age) for age in range(11)], True),
            ([str(age) for age in range(10)], False),  # grades
            ([str(age) for age in range(11)] + ["unknown"] * 90, True),
            ([str(age) for age in range(18)] + ["old"] * 2, True),
            ([str(age) for age in range(18)] + ["old"] * 3, False),
            (["2", "2.0", "02"] * 9, False),
        ],
    )
    def test_measurements(self, values, expected):
        assert are_measurements(values) is expected

    @pytest.mark.parametrize(
        ("numbers", "edges"),
        [
            (range(1, 9), [2.0, 4.0, 6.0]),
            ([5] * 9 + [7], [7.0]),  # quartiles would leave the lowest band empty
            ([1, 1, 1, 4, 4, 4, 4, 9], [4.0]),
            ([3, 3], []),
        ],
    )
    def test_quartiles(self, numbers, edges):
        assert find_quartiles(["unknown", *map(str, numbers)]) == edges
