"""The page of contracts, from proto/ as protoc reads it."""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from docs.generate.markdown import NOTE, ROOT, table
from smoa.access.principal import role_name
from smoa.v1 import access_pb2


def protos_page() -> str:
    """Every service, message and enum of proto/smoa/v1 with its comments."""
    parts = [
        NOTE,
        "# Protos",
        "The contracts, as in `proto/smoa/v1`. Any language's gRPC and protobuf will do; the Python ones are generated in `smoa.v1`. "
        "What a topic of Kafka holds is in [concepts](../concepts/topics.md).\n",
    ]
    for file in descriptors():
        comments = {tuple(one.path): _comment(one) for one in file.source_code_info.location}
        name = file.name.rpartition("/")[2]
        parts.append(f"## {name}\n\n{_comment_of_file(file)}\n")
        for number, service in enumerate(file.service):
            parts.append(f"### Service `{service.name}`\n\n{comments.get((6, number), '')}\n")
            rows = [
                (
                    f"`{method.name}`",
                    ("stream of " if method.client_streaming else "") + _short(method.input_type),
                    ("stream of " if method.server_streaming else "") + _short(method.output_type),
                    _roles(method.options),
                    comments.get((6, number, 2, place), ""),
                )
                for place, method in enumerate(service.method)
            ]
            parts.append(table(("method", "request", "answer", "roles", "meaning"), rows))
        for number, message in enumerate(file.message_type):
            parts += _message(message, (4, number), comments, "")
        for number, enum in enumerate(file.enum_type):
            parts += _enum(enum, (5, number), comments, "")
    return "\n".join(parts)


def _roles(options: Any) -> str:
    return ", ".join(f"`{role_name(role)}`" for role in options.Extensions[access_pb2.roles])


def descriptors() -> list[descriptor_pb2.FileDescriptorProto]:
    """The parsed .proto files with their comments."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto/smoa/v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        folders = [f"-I{ROOT / 'proto'}", f"-I{files('grpc_tools') / '_proto'}"]
        arguments = ["protoc", *folders, "--include_source_info", f"--descriptor_set_out={out}", *sources]
        if protoc.main(arguments):
            raise SystemExit("proto: protoc failed; see above")
        return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def _comment(location: descriptor_pb2.SourceCodeInfo.Location) -> str:
    return " ".join((location.leading_comments or location.trailing_comments).split())


def _comment_of_file(file: descriptor_pb2.FileDescriptorProto) -> str:
    (found,) = (one for one in file.source_code_info.location if list(one.path) == [12])  # the `syntax` line
    return _comment(found)


def _short(name: str) -> str:
    return f"`{name.removeprefix('.smoa.v1.').removeprefix('.')}`"


def _message(message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], comments: dict[tuple[int, ...], str], outer: str) -> list[str]:
    parts = [f"### `{outer}{message.name}`\n"]
    if comment := comments.get(path):
        parts.append(f"{comment}\n")
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    rows = [
        (str(field.number), f"`{field.name}`", _type(field, maps), comments.get((*path, 2, place), ""))
        for place, field in enumerate(message.field)
    ]
    parts.append(table(("number", "field", "type", "meaning"), rows) if rows else "No fields.\n")
    for place, nested in enumerate(message.nested_type):
        if nested.name not in maps:
            parts += _message(nested, (*path, 3, place), comments, f"{outer}{message.name}.")
    for place, enum in enumerate(message.enum_type):
        parts += _enum(enum, (*path, 4, place), comments, f"{outer}{message.name}.")
    return parts


def _type(field: descriptor_pb2.FieldDescriptorProto, maps: dict[str, descriptor_pb2.DescriptorProto]) -> str:
    if (entry := maps.get(field.type_name.rpartition(".")[2])) is not None:
        return f"map of {_type(entry.field[0], {})} to {_type(entry.field[1], {})}"
    plain = descriptor_pb2.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _short(field.type_name) if field.type_name else f"`{plain}`"
    if field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _enum(enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], comments: dict[tuple[int, ...], str], outer: str) -> list[str]:
    parts = [f"### `{outer}{enum.name}`\n"]
    if comment := comments.get(path):
        parts.append(f"{comment}\n")
    rows = [(str(value.number), f"`{value.name}`", comments.get((*path, 2, place), "")) for place, value in enumerate(enum.value)]
    parts.append(table(("number", "value", "meaning"), rows))
    return parts
