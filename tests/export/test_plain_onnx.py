"""ONNX files that came from elsewhere: one plain graph of standard operators, or nothing."""

import resource
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from fedmed import predict
from fedmed.errors import WireError
from fedmed.export.plain_onnx import check_plain_onnx
from tests.support.mutations import mutations

WEIGHTS = 12


def make_model(nodes: list[onnx.NodeProto] | None = None, more: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """logits = mean of images over height and width + 1, with the 1 as a weight; or other nodes with other weights."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])
    pooled = helper.make_node("GlobalAveragePool", ["images"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["flat"])
    add = helper.make_node("Add", ["flat", "w"], ["logits"])
    weights = {"w": np.ones(3, np.float32)} | (more or {})
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([*(nodes or []), pooled, flat, add], "model", [images], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def check(model: onnx.ModelProto, weights: int = WEIGHTS) -> None:
    check_plain_onnx(model.SerializeToString(), weight_bytes=weights)


def outside(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def outside_without_saying_so(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def outside_in_an_attribute(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    node.attribute[0].t.data_location = TensorProto.EXTERNAL
    model.graph.node.append(node)


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def custom_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "RunProgram"


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="")


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def options(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="ort_config", value="{}")


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["n", "c"], ["y"], body=body))


def loop_without_graph(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", ["n", "c"], ["y"]))


def random(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["y"], shape=[2]))


def make_outside() -> TensorProto:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../site.key")
    return tensor


def outside_in_a_list(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="more", type=onnx.AttributeProto.TENSORS).tensors.append(make_outside())
    model.graph.node.append(node)


def outside_in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["c"], ["y"])], "then", [], [], [make_outside()])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    model.graph.node[-1].op_type = "Identity"  # whatever it calls itself


def sparse_in_an_attribute(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.SetInParent()
    model.graph.node.append(node)


def function_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="x", ref_attr_name="y", type=onnx.AttributeProto.INT)


def two_opsets(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 17))


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 7


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 10_000


def shorter_than_declared(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def declared_and_empty(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="e", data_type=TensorProto.FLOAT, dims=[2**40])


def negative_side(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims.extend([-1, -1])


def words(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="e", data_type=TensorProto.STRING, dims=[1], string_data=[b"word"])


def segment(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 1


def quantisation(model: onnx.ModelProto) -> None:
    model.graph.quantization_annotation.add(tensor_name="w")


def unknown_field(model: onnx.ModelProto) -> None:
    model.graph.node[0].MergeFromString(b"\xa2\x3e\x01x")  # field 1000 of a node


def huge_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="axis", type=onnx.AttributeProto.INT, i=2**62)


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (outside, "weights that lie in another file"),
        (outside_without_saying_so, "weights that lie in another file"),
        (outside_in_an_attribute, "weights that lie in another file"),
        (sparse, "sparse weights"),
        (custom_domain, "not of ONNX itself"),
        (custom_operator, "not of ONNX itself"),
        (unknown_operator, "not of ONNX itself"),
        (function, "functions of its own"),
        (training, "instructions for training"),
        (options, "options for the program that runs it"),
        (loop, "a graph within the graph"),
        (loop_without_graph, "not of ONNX itself or not those of an image classifier"),
        (random, "not of ONNX itself or not those of an image classifier"),
        (outside_in_a_list, "weights that lie in another file"),
        (outside_in_a_branch, "a graph within the graph"),
        (sparse_in_an_attribute, "sparse weights"),
        (function_attribute, "functions of its own"),
        (two_opsets, "a version of ONNX other than"),
        (old_opset, "a version of ONNX other than"),
        (future_opset, "a version of ONNX other than"),
        (shorter_than_declared, "weights of another size than they declare"),
        (declared_and_empty, "weights of another size than they declare"),
        (negative_side, "weights of another size than they declare"),
        (words, "weights that are no plain numbers"),
        (segment, "weights that are no plain numbers"),
        (quantisation, "options for the program that runs it"),
        (unknown_field, "parts that are not of ONNX"),
        (huge_attribute, "numbers that are too large"),
        (second_input, "other inputs or outputs"),
    ],
)
def test_anything_else_is_refused(change, expected: str) -> None:
    model = make_model()
    change(model)
    with pytest.raises(WireError, match=expected):
        check(model)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08" * 100])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        check_plain_onnx(data, weight_bytes=1000)


# --- what a file can make


def constant(name: str, *values: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))


def fill(*shape: int) -> list[onnx.NodeProto]:
    return [constant("s", *shape), helper.make_node("ConstantOfShape", ["s"], ["big"])]


TOO_MUCH = "constants take more than|memory in it|cannot be told|too large|grows faster|multiplications"
BOMBS: dict[str, list[onnx.NodeProto]] = {
    "filled": fill(500_000_000),
    "filled, sizes that overflow": fill(2**31, 2**31, 4),
    "filled, a size from other numbers": [
        constant("a", 30_000), helper.make_node("Mul", ["a", "a"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
    ],
    "filled, as often as there are pixels": [
        helper.make_node("Shape", ["images"], ["sides"]), helper.make_node("Mul", ["sides", "sides"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
    ],
    "filled, as the pixels say": [
        helper.make_node("Cast", ["images"], ["whole"], to=TensorProto.INT64),
        constant("one", -1), helper.make_node("Reshape", ["whole", "one"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
    ],
    "expanded": [constant("s", 10**6, 16, 16), helper.make_node("Expand", ["w0", "s"], ["big"])],
    "tiled": [constant("s", 10**9), helper.make_node("Tile", ["w", "s"], ["big"])],
    "tiled, images": [constant("s", 1, 10**6, 1, 1), helper.make_node("Tile", ["images", "s"], ["big"])],
    "counted": [
        constant("z", 0), constant("n", 10**10), constant("d", 1), helper.make_node("Squeeze", ["z"], ["z0"]),
        helper.make_node("Squeeze", ["n"], ["n0"]), helper.make_node("Squeeze", ["d"], ["d0"]),
        helper.make_node("Range", ["z0", "n0", "d0"], ["big"]),
    ],
    "padded": [constant("p", 0, 0, 0, 0, 0, 0, 10**5, 10**5), helper.make_node("Pad", ["images", "p"], ["big"])],
    "resized": [
        constant("p", 2, 3, 10**5, 10**5), helper.make_node("Resize", ["images", "", "", "p"], ["big"], mode="nearest")
    ],
    "folded in on itself": [
        node for i in range(40)
        for node in [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0)]
    ],
    "all pairs of images": [
        constant("s", -1, 768), helper.make_node("Reshape", ["images", "s"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["columns"]), helper.make_node("MatMul", ["rows", "columns"], ["big"]),
    ],
    "a long sum": [
        constant("s", 15_000, 15_000), helper.make_node("ConstantOfShape", ["s"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(50)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_file_that_makes_much_more_than_it_holds_is_refused(name: str) -> None:
    model = make_model(BOMBS[name], {"w0": np.ones((1, 16, 16), np.float32), "c0": np.ones(1, np.int64)})
    with pytest.raises(WireError, match=TOO_MUCH):
        check(model)
    assert len(model.SerializeToString()) < 4000


def test_many_small_steps_are_counted_together() -> None:
    """500 values of 4 MB are needed to the end."""
    nodes = [constant("s", 10**6)]
    for i in range(500):
        nodes += [helper.make_node("ConstantOfShape", ["s"], [f"c{i}"])]
    nodes += [helper.make_node("Sum", [f"c{i}" for i in range(500)], ["all"])]
    with pytest.raises(WireError, match="constants take more than"):
        check(make_model(nodes))


def test_few_constants_are_allowed_beside_small_weights_and_more_beside_large_ones() -> None:
    half = fill(400_000)  # 1.6 MB
    with pytest.raises(WireError, match="constants take more than 1,048,624 bytes"):
        check(make_model(half))
    check(make_model(half), 10**6)


def test_shapes_that_a_file_states_are_not_believed() -> None:
    model = make_model([*fill(500_000_000)])
    model.graph.value_info.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, [1]))
    with pytest.raises(WireError, match="constants take more than"):
        check(model)


@pytest.mark.parametrize(
    "sides", [[2, 3, 16, 16], ["b", 1, 16, 16], ["b", 3, "h", "w"], ["b", 3, 16], ["b", 3, 9999, 16]]
)
def test_input_is_a_batch_of_images(sides: list[object]) -> None:
    model = make_model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, sides))
    with pytest.raises(WireError, match=r"its input is no batch of images|colours instead of 3"):
        check(model)


def test_values_have_one_name_and_are_made_before_they_are_used() -> None:
    model = make_model([helper.make_node("Identity", ["w"], ["w"])])
    with pytest.raises(WireError, match="two of its values have one name"):
        check(model)
    with pytest.raises(WireError, match="used before it is made"):
        check(make_model([helper.make_node("Relu", ["later"], ["x"]), helper.make_node("Relu", ["images"], ["later"])]))
    with pytest.raises(WireError, match="does not fit its inputs"):
        check(make_model([helper.make_node("MatMul", ["w", "images"], ["x"])]))


def test_size_of_a_file_is_looked_at_before_it_is_read() -> None:
    with pytest.raises(WireError, match="more than its weights of 12 explain"):
        check_plain_onnx(bytes(20 * 2**20), weight_bytes=12)


def test_no_other_file_is_opened_whatever_a_model_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a file that was not looked through, as where only predict.py is there."""
    (tmp_path / "secret").write_bytes(b"12345678" * 2)
    monkeypatch.chdir(tmp_path)
    model = make_model()
    outside(model)
    for place in ("secret", str(tmp_path / "secret")):
        for entry in model.graph.initializer[0].external_data:
            entry.value = place
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(predict.PredictionError, match="cannot run it"):
            predict.open_session(tmp_path / "model.onnx", 1)


# --- mutations


def find_refusal(content: bytes) -> str | None:
    try:
        check_plain_onnx(content, weight_bytes=WEIGHTS)
    except WireError as error:
        return str(error)
    return None


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_file_is_refused_in_one_line_or_does_no_harm(examples: int) -> None:
    sound = make_model([constant("k", 3)]).SerializeToString()
    images = np.zeros((2, 3, 16, 16), np.float32)

    @settings(max_examples=examples, deadline=None)
    @given(mutations(sound))
    def check_one(content: bytes) -> None:
        refusal = find_refusal(content)
        if refusal is not None:
            assert "\n" not in refusal
            return
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(Exception):  # a runtime may still know better
            predict.open_session(content, 1).run(None, {"images": images})
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024

    check_one()
