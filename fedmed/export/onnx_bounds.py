"""How much memory and work an ONNX file can cause, found without running it.

The shape of every value is followed from the operators' own rules, with two sizes of a batch. A file in which the shape
of anything depends on what is in the images, or grows faster than the batch, is refused, and so is one whose constants,
values or multiplications are more than an image classifier needs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

TYPES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}
"""Kinds of numbers that are read -> bytes: float32, uint8, int8, int32, int64, bool, float16, float64."""
SPARE_BYTES = 2**20
LARGEST_NUMBER = 2**31
"""Of an attribute, or of a value that says how large something gets: products of two such numbers fit into 64 bits."""
MOST_ALIVE_BYTES = 2**30
"""Of all values of one image that are needed at the same time."""
MOST_MULTIPLICATIONS = 4 * 10**12
"""For one image."""
_BATCHES = (2, 3)
_MOST_FOLLOWED = 4096
_MOST_SIDE, _CHANNELS = 4096, 3
_NAMES = """
Add Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Floor Gather Identity Max Min Mod Mul Neg Range
ReduceProd ReduceSum Reshape Shape Size Slice Squeeze Sub Tile Unsqueeze Where
"""
_COMPUTED = frozenset(_NAMES.split())
"""Operators whose few whole numbers are computed here, because the size of something may depend on them."""

Shape = tuple[int, ...]


class SizeError(Exception):
    """What is too large, or of which it cannot be told how large it is."""


@dataclass
class _Sizes:
    """What is known of the values of a graph with one size of the batch."""

    kinds: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    """Few whole numbers, as arrays, where they are the same for all images."""
    fixed: set[str] = field(default_factory=set)
    """Values that a runtime may compute once and keep, because no image is in them."""
    alive_bytes: int = 0
    multiplications: int = 0

    def add(self, name: str, kind: int, shape: Sequence[int]) -> None:
        if name in self.shapes:
            raise SizeError("two of its values have one name")
        if kind not in TYPES:
            raise SizeError("a value in it is no plain number")
        self.kinds[name], self.shapes[name] = kind, tuple(shape)

    def count_bytes(self, name: str) -> int:
        return math.prod(self.shapes[name]) * TYPES[self.kinds[name]]


def check_sizes(proto: Any, most_constant_bytes: int) -> None:
    """Check what a graph can make.

    Parameters
    ----------
    proto : onnx.ModelProto
        A single graph of standard operators, with one input and one output.
    most_constant_bytes : int
        Of all values that do not depend on the images.

    Raises
    ------
    SizeError
        If something is too large, or it cannot be told.
    """
    found = [_follow(proto, batch, most_constant_bytes) for batch in _BATCHES]
    small, large = found
    for name in small.shapes:
        if small.count_bytes(name) * _BATCHES[1] < large.count_bytes(name) * _BATCHES[0]:
            raise SizeError("a value in it grows faster than the number of images")


def _follow(proto: Any, batch: int, most_constant_bytes: int) -> _Sizes:
    from onnx import numpy_helper  # noqa: PLC0415

    graph, sizes = proto.graph, _Sizes()
    sizes.add(graph.input[0].name, 1, _read_input(graph.input[0], batch))
    for tensor in graph.initializer:
        sizes.add(tensor.name, tensor.data_type, tensor.dims)
        sizes.fixed.add(tensor.name)
        if _may_say_a_size(tensor.data_type, tensor.dims):
            sizes.numbers[tensor.name] = numpy_helper.to_array(tensor)
    constant_bytes = sum(map(sizes.count_bytes, sizes.fixed))
    alive, ends = 0, _find_ends(graph)
    for index, node in enumerate(graph.node):
        for name in _follow_node(proto, node, sizes):
            size = sizes.count_bytes(name)
            if name in sizes.fixed:
                constant_bytes += size
            alive += size
        if constant_bytes > most_constant_bytes:
            raise SizeError(f"its constants take more than {most_constant_bytes:,} bytes, which its weights explain")
        if alive > batch * MOST_ALIVE_BYTES:
            raise SizeError(f"one image takes more than {MOST_ALIVE_BYTES // 2**20} MiB of memory in it")
        if sizes.multiplications > batch * MOST_MULTIPLICATIONS:
            raise SizeError(f"one image takes more than {MOST_MULTIPLICATIONS:,} multiplications in it")
        alive -= sum(map(sizes.count_bytes, ends.get(index, ())))
    if graph.output[0].name not in sizes.shapes:
        raise SizeError("its output is not made in it")
    return sizes


def _read_input(value: Any, batch: int) -> Shape:
    """Return the shape of the images, (batch, 3, height, width)."""
    tensor = value.type.tensor_type
    sides = tensor.shape.dim
    fixed = [side.dim_value for side in sides[1:] if side.HasField("dim_value")]
    is_free = len(sides) == 4 and not sides[0].HasField("dim_value")
    if tensor.elem_type != 1 or not is_free or len(fixed) != 3 or not all(0 < side <= _MOST_SIDE for side in fixed):
        raise SizeError("its input is no batch of images of one size")
    if fixed[0] != _CHANNELS:
        raise SizeError(f"its images have {fixed[0]} colours instead of {_CHANNELS}")
    return (batch, *fixed)


def _find_ends(graph: Any) -> dict[int, list[str]]:
    """Return, by the index of a node, the values of other nodes that nothing needs after it."""
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    last = dict(made)
    for index, node in enumerate(graph.node):
        last |= {name: index for name in node.input if name in made}
    last.pop(graph.output[0].name, None)
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        ends.setdefault(index, []).append(name)
    return ends


def _follow_node(proto: Any, node: Any, sizes: _Sizes) -> Iterator[str]:
    """Add a node's results to what is known and yield their names."""
    inputs = [name for name in node.input if name]
    if any(name not in sizes.shapes for name in inputs):
        raise SizeError("a value in it is used before it is made")
    found = _infer(proto, node, sizes)
    for name in filter(None, node.output):
        if name not in found or not found[name].HasField("tensor_type"):
            raise SizeError(f"it cannot be told how large the result of an operator '{node.op_type}' is")
        tensor = found[name].tensor_type
        sides = tensor.shape.dim
        if not tensor.HasField("shape") or not all(side.HasField("dim_value") for side in sides):
            raise SizeError(f"it cannot be told how large the result of an operator '{node.op_type}' is")
        shape = [side.dim_value for side in sides]
        if any(not 0 <= side <= LARGEST_NUMBER for side in shape):
            raise SizeError(f"the result of an operator '{node.op_type}' in it is too large")
        sizes.add(name, tensor.elem_type, shape)
        if node.op_type != "Shape" and all(one in sizes.fixed for one in inputs):
            sizes.fixed.add(name)
        yield name
    sizes.multiplications += _count_multiplications(node, sizes)
    _compute(proto, node, sizes)


def _infer(proto: Any, node: Any, sizes: _Sizes) -> dict[str, Any]:
    """Return the types of a node's results by the operator's own rule."""
    from onnx import defs, helper, numpy_helper, shape_inference  # noqa: PLC0415

    names = [name for name in node.input if name]
    types = {name: helper.make_tensor_type_proto(sizes.kinds[name], sizes.shapes[name]) for name in names}
    known = {name: sizes.numbers[name] for name in names if name in sizes.numbers}
    if any(_is_too_large(node, array) for array in known.values()):
        raise SizeError(f"a size for an operator '{node.op_type}' in it is too large")
    data = {name: numpy_helper.from_array(array, name) for name, array in known.items()}
    try:
        schema = defs.get_schema(node.op_type, proto.opset_import[0].version, "")
        found: dict[str, Any] = shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=list(proto.opset_import), ir_version=proto.ir_version
        )
    except Exception:  # the library has no common class of errors
        raise SizeError(f"an operator '{node.op_type}' in it does not fit its inputs") from None
    return found


def _is_too_large(node: Any, numbers: Any) -> bool:
    """Return whether numbers may say a size that does not fit into 64 bits; the end of a slice may be anywhere."""
    may_say = node.op_type == "Resize" or numbers.dtype.kind in "iu"
    return bool(may_say and node.op_type != "Slice" and (abs(numbers.astype(float)) > LARGEST_NUMBER).any())


def _may_say_a_size(kind: int, shape: Sequence[int]) -> bool:
    """Return whether a value may say how large something gets: few whole numbers, or the scales of a resize."""
    return kind in TYPES and len(shape) <= 2 and math.prod(shape) <= _MOST_FOLLOWED


def _compute(proto: Any, node: Any, sizes: _Sizes) -> None:
    """Compute few numbers from few numbers; the result's size is known before."""
    inputs = [name for name in node.input if name]
    name = node.output[0] if node.output else ""
    if node.op_type not in _COMPUTED or not name or not _may_say_a_size(sizes.kinds[name], sizes.shapes[name]):
        return
    if node.op_type in {"Shape", "Size"}:
        from onnx import helper, numpy_helper  # noqa: PLC0415

        start, end = (helper.get_node_attr_value(node, key) if _has(node, key) else None for key in ("start", "end"))
        shape = sizes.shapes[inputs[0]]
        values = shape[start:end] if node.op_type == "Shape" else math.prod(shape)
        sizes.numbers[name] = numpy_helper.to_array(_make_numbers(name, values))
    elif all(one in sizes.numbers for one in inputs):
        sizes.numbers[name] = _evaluate(proto, node, {one: sizes.numbers[one] for one in inputs})


def _has(node: Any, key: str) -> bool:
    return any(attribute.name == key for attribute in node.attribute)


def _make_numbers(name: str, values: Any) -> Any:
    import numpy as np  # noqa: PLC0415
    from onnx import numpy_helper  # noqa: PLC0415

    return numpy_helper.from_array(np.array(values, np.int64), name)


def _evaluate(proto: Any, node: Any, inputs: dict[str, Any]) -> Any:
    from onnx import ValueInfoProto, helper  # noqa: PLC0415
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    names = [ValueInfoProto(name=name) for name in inputs]
    graph = helper.make_graph([node], "one", names, [ValueInfoProto(name=node.output[0])])
    try:
        model = helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
        found: Any = ReferenceEvaluator(model).run(None, inputs)
        return found[0]
    except Exception:  # numpy's and the library's have no common class
        raise SizeError(f"an operator '{node.op_type}' in it does not fit its inputs") from None


def _count_multiplications(node: Any, sizes: _Sizes) -> int:
    """Return how often numbers are multiplied or added in a node, to the order of magnitude."""
    made = sum(math.prod(sizes.shapes[name]) for name in node.output if name)
    read = [sizes.shapes[name] for name in node.input if name]
    if node.op_type == "Conv":
        return made * math.prod(read[1][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(read[0]) * math.prod(read[1][1:])
    if node.op_type in {"MatMul", "Gemm"} and read[0]:
        return made * max(read[0])
    if node.op_type in {"AveragePool", "MaxPool"}:
        kernels = [attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"]
        return made * math.prod(kernels[0] if kernels else ())
    return made + sum(map(math.prod, read))
