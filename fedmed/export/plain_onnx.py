"""Whether an ONNX file that came from elsewhere is nothing but a network.

An ONNX file can name other files on this machine, carry operators of its own for which a runtime loads libraries, hold
functions and loops, keep options for the runtime that opens it, and be a few hundred bytes that make gigabytes. A
network that this library exports does none of this, so a file that does is refused before a runtime sees it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from fedmed.errors import WireError
from fedmed.export.onnx_bounds import LARGEST_NUMBER, SPARE_BYTES, TYPES, SizeError, check_sizes
from fedmed.export.onnx_file import INPUT, OUTPUT

STANDARD_DOMAINS = ("", "ai.onnx")
OPSETS = range(13, 29)
"""Versions of ONNX's operators that are read; this library writes one of them."""
MOST_TIMES_THE_WEIGHTS = 4
"""Constants of a file, in sizes of the same network's weights."""
_NAMES = """
Abs Add And Ceil Clip Cos Div Equal Erf Exp Floor Greater GreaterOrEqual Less LessOrEqual Log Max Mean Min Mod Mul Neg
Not Or Pow Reciprocal Round Sign Sin Sqrt Sub Sum Where Xor
Celu Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax Mish PRelu Relu Selu Sigmoid Softmax Softplus Softsign Swish
Tanh ThresholdedRelu
AveragePool BatchNormalization Conv ConvTranspose Gemm GlobalAveragePool GlobalMaxPool GroupNormalization
InstanceNormalization LayerNormalization LpNormalization MatMul MaxPool RMSNormalization
ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare TopK
Cast CastLike Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad
Range Reshape Resize ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu
Unsqueeze
"""
OPERATORS = frozenset(_NAMES.split())
"""Operators that are read; none of them draws a random number, holds a graph or opens a file."""
_MOST_NODES = 100_000
_LAST_IR = 13
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def check_plain_onnx(data: bytes, *, weight_bytes: int) -> None:
    """Check that a file is one plain graph of standard operators with all its weights inside, and of bounded size.

    Parameters
    ----------
    data : bytes
        Content of the file.
    weight_bytes : int
        Size of the same network's ``model.safetensors``. The file's constants may take four times as much.

    Raises
    ------
    WireError
        With what is in it that must not be; the text may be told to whoever sent the file.
    """
    import onnx  # noqa: PLC0415  (a tenth of a second and some memory, which only a release should pay)

    most_bytes = MOST_TIMES_THE_WEIGHTS * weight_bytes + SPARE_BYTES
    if len(data) > most_bytes + 16 * SPARE_BYTES:  # names and structure take some space of their own
        raise WireError(f"The ONNX file has {len(data):,} bytes, more than its weights of {weight_bytes:,} explain.")
    try:
        proto = onnx.ModelProto.FromString(data)
        size = proto.ByteSize()
        proto.DiscardUnknownFields()
    except Exception:  # protobuf's errors are not all of one class
        raise WireError("The ONNX file cannot be read.") from None
    problem = "parts that are not of ONNX" if proto.ByteSize() != size else next(_find_problems(proto), None)
    if problem is not None:
        raise WireError(f"The ONNX file holds {problem}, which no exported model of this library does.")
    try:
        check_sizes(proto, most_bytes)
    except SizeError as error:
        raise WireError(f"The ONNX file is refused: {error}.") from None


def _find_problems(proto: Any) -> Iterator[str]:
    opsets = [(entry.domain, entry.version) for entry in proto.opset_import]
    if not opsets or not all(domain in STANDARD_DOMAINS for domain, _ in opsets):
        yield "operators that are not of ONNX itself"
    if len(opsets) != 1 or opsets[0][1] not in OPSETS or not 0 < proto.ir_version <= _LAST_IR:
        yield f"a version of ONNX other than the operator sets {OPSETS.start} to {OPSETS.stop - 1}"
    if proto.functions:
        yield "functions of its own"
    if proto.training_info:
        yield "instructions for training"
    if proto.metadata_props or proto.graph.metadata_props or proto.graph.quantization_annotation:
        yield "options for the program that runs it"
    graph = proto.graph
    if [value.name for value in graph.input] != [INPUT] or [value.name for value in graph.output] != [OUTPUT]:
        yield f"other inputs or outputs than '{INPUT}' and '{OUTPUT}'"
    if len(graph.node) > _MOST_NODES:
        yield f"more than {_MOST_NODES} operators"
    if graph.sparse_initializer:
        yield "sparse weights"
    yield from _find_problems_of_tensors(graph.initializer)
    yield from _find_problems_of_nodes(graph.node)


def _find_problems_of_nodes(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        if node.domain not in STANDARD_DOMAINS:
            yield "operators that are not of ONNX itself"
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                yield "a graph within the graph, such as a loop"
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                yield "sparse weights"
            if attribute.ref_attr_name:
                yield "functions of its own"
            if attribute.HasField("tp") or attribute.type_protos:
                yield "attributes that no operator of its list has"
            if any(abs(number) > LARGEST_NUMBER for number in (attribute.i, *attribute.ints)):
                yield "numbers that are too large for the size of anything"
            tensors = [attribute.t] if attribute.HasField("t") else []
            yield from _find_problems_of_tensors([*tensors, *attribute.tensors])
        if node.op_type not in OPERATORS:
            yield "operators that are not of ONNX itself or not those of an image classifier"


def _find_problems_of_tensors(tensors: Iterable[Any]) -> Iterator[str]:
    for tensor in tensors:
        if tensor.external_data or tensor.data_location != tensor.DEFAULT:
            yield "weights that lie in another file"
        elif tensor.HasField("segment") or tensor.string_data or tensor.data_type not in TYPES:
            yield "weights that are no plain numbers"
        elif not _is_complete(tensor):
            yield "weights of another size than they declare"


def _is_complete(tensor: Any) -> bool:
    """Return whether a tensor holds as many values as its shape says, and holds them once."""
    number = 1
    for side in tensor.dims:
        if side < 0:
            return False
        number *= side
    counts = [len(getattr(tensor, name)) for name in _DATA_FIELDS]
    if tensor.HasField("raw_data"):
        return not any(counts) and len(tensor.raw_data) == number * TYPES[tensor.data_type]
    return sum(count > 0 for count in counts) <= 1 and sum(counts) == number
