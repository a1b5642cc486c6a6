from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_INFER: _ClassVar[Role]
    ROLE_LIBRARY: _ClassVar[Role]
    ROLE_PUBLISH: _ClassVar[Role]
    ROLE_OPERATE: _ClassVar[Role]
    ROLE_OPTIMIZER: _ClassVar[Role]
    ROLE_EXECUTOR: _ClassVar[Role]
    ROLE_GATEWAY: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_INFER: Role
ROLE_LIBRARY: Role
ROLE_PUBLISH: Role
ROLE_OPERATE: Role
ROLE_OPTIMIZER: Role
ROLE_EXECUTOR: Role
ROLE_GATEWAY: Role
ROLES_FIELD_NUMBER: _ClassVar[int]
roles: _descriptor.FieldDescriptor
AUDITED_FIELD_NUMBER: _ClassVar[int]
audited: _descriptor.FieldDescriptor
NAMES_TENANT_FIELD_NUMBER: _ClassVar[int]
names_tenant: _descriptor.FieldDescriptor
NEEDS_FIELD_NUMBER: _ClassVar[int]
needs: _descriptor.FieldDescriptor
COUNTS_EACH_FIELD_NUMBER: _ClassVar[int]
counts_each: _descriptor.FieldDescriptor

class Represented(_message.Message):
    __slots__ = ("name", "tenants", "roles")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    tenants: _containers.RepeatedScalarFieldContainer[str]
    roles: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., tenants: _Optional[_Iterable[str]] = ..., roles: _Optional[_Iterable[str]] = ...) -> None: ...
