"""ONNX files that came from elsewhere: one plain graph of standard operators, or nothing."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedmed.errors import WireError
from fedmed.export.plain_onnx import check_plain_onnx


def make_model() -> onnx.ModelProto:
    """logits = images + 1, with the 1 as a weight."""
    node = helper.make_node("Add", ["images", "w"], ["logits"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in ("images", "logits")]
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    graph = helper.make_graph([node], "model", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_plain_graph_is_accepted() -> None:
    check_plain_onnx(make_model().SerializeToString())


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
        (second_input, "other inputs or outputs"),
    ],
)
def test_anything_else_is_refused(change, expected: str) -> None:
    model = make_model()
    change(model)
    with pytest.raises(WireError, match=expected):
        check_plain_onnx(model.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08" * 100])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        check_plain_onnx(data)
