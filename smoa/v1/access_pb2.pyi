from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

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
ROLE_UNSPECIFIED: Role
ROLE_INFER: Role
ROLE_LIBRARY: Role
ROLE_PUBLISH: Role
ROLE_OPERATE: Role
ROLE_OPTIMIZER: Role
ROLE_EXECUTOR: Role
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
