"""The messages of an ONNX file that we read, by the field numbers of onnx.proto of ONNX 1.23 (IR version 14).

Absent are fields that an engine may read and we do not: the parts of functions and of training, overloads, devices,
segments, strings, sparse tensors, and types other than tensors. The reader refuses them.
"""

from __future__ import annotations

from t2v_edge.bundle.wire import Fields, Schema, WireError, WireReader, one

MODEL = Schema("ModelProto", int64="1 5", text="2 3 4 6", message="7 8* 20* 25*", pair="14*")
OPSET = Schema("OperatorSetIdProto", text="1", int64="2")
GRAPH = Schema("GraphProto", text="2 10", message="1* 5* 11* 12* 13* 15*", pair="16*")
NODE = Schema("NodeProto", text="1* 2* 3 4 6 7", message="5*", pair="9*")
ATTRIBUTE = Schema(
    "AttributeProto", text="1 13", int32="20", float="2 7*", int64="3 8*", bytes="4 9*", message="5 6 10* 11* 22 23*"
)
TENSOR = Schema(
    "TensorProto", int64="1* 7* 11*", int32="2 5* 14", float="4*", double="10*", text="8 12", bytes="9", pair="13* 16*"
)
VALUE = Schema("ValueInfoProto", text="1 3", message="2", pair="4*")
TYPE = Schema("TypeProto", message="1", text="6")
TENSOR_TYPE = Schema("TypeProto.Tensor", int32="1", message="2")
SHAPE = Schema("TensorShapeProto", message="1*")
DIMENSION = Schema("TensorShapeProto.Dimension", oneof=(1, 2), int64="1", text="2 3")


def opset_version(reader: WireReader, model: Fields) -> int:
    """The opset of the default domain, 0 if the model imports none. Raises `WireError` for a domain imported twice."""
    versions: dict[str, int] = {}
    for entry in model.get(8, []):
        imported = reader.message(entry, OPSET)
        domain = one(imported, 1, "")
        domain = "" if domain == "ai.onnx" else domain
        if domain in versions:
            raise WireError(f"the ONNX file imports the opset of domain {domain!r} twice")
        versions[domain] = one(imported, 2, 0)
    return versions.get("", 0)
