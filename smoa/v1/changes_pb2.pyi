from smoa.validate import validate_pb2 as _validate_pb2
from smoa.v1 import access_pb2 as _access_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_KIND_UNSPECIFIED: _ClassVar[ChangeKind]
    CHANGE_KIND_PRUNE: _ClassVar[ChangeKind]
    CHANGE_KIND_MERGE: _ClassVar[ChangeKind]
    CHANGE_KIND_PURGE: _ClassVar[ChangeKind]
    CHANGE_KIND_SUPERSEDE: _ClassVar[ChangeKind]

class ChangeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_STATE_UNSPECIFIED: _ClassVar[ChangeState]
    CHANGE_STATE_PROPOSED: _ClassVar[ChangeState]
    CHANGE_STATE_GATED: _ClassVar[ChangeState]
    CHANGE_STATE_TRIAL: _ClassVar[ChangeState]
    CHANGE_STATE_DONE: _ClassVar[ChangeState]
    CHANGE_STATE_UNDONE: _ClassVar[ChangeState]
    CHANGE_STATE_REFUSED: _ClassVar[ChangeState]
    CHANGE_STATE_WITHDRAWN: _ClassVar[ChangeState]
CHANGE_KIND_UNSPECIFIED: ChangeKind
CHANGE_KIND_PRUNE: ChangeKind
CHANGE_KIND_MERGE: ChangeKind
CHANGE_KIND_PURGE: ChangeKind
CHANGE_KIND_SUPERSEDE: ChangeKind
CHANGE_STATE_UNSPECIFIED: ChangeState
CHANGE_STATE_PROPOSED: ChangeState
CHANGE_STATE_GATED: ChangeState
CHANGE_STATE_TRIAL: ChangeState
CHANGE_STATE_DONE: ChangeState
CHANGE_STATE_UNDONE: ChangeState
CHANGE_STATE_REFUSED: ChangeState
CHANGE_STATE_WITHDRAWN: ChangeState

class ChangeStep(_message.Message):
    __slots__ = ("state", "reason", "evidence", "at_us", "by")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    state: ChangeState
    reason: str
    evidence: _containers.ScalarMap[str, float]
    at_us: int
    by: str
    def __init__(self, state: _Optional[_Union[ChangeState, str]] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ..., at_us: _Optional[int] = ..., by: _Optional[str] = ...) -> None: ...

class PlannedChange(_message.Message):
    __slots__ = ("change_id", "tenant", "kind", "adapter_ids", "state", "merge_id", "child_digest", "approved", "begun_at_us", "created_at_us", "updated_at_us", "steps")
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MERGE_ID_FIELD_NUMBER: _ClassVar[int]
    CHILD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    BEGUN_AT_US_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    change_id: str
    tenant: str
    kind: ChangeKind
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    state: ChangeState
    merge_id: str
    child_digest: str
    approved: bool
    begun_at_us: int
    created_at_us: int
    updated_at_us: int
    steps: _containers.RepeatedCompositeFieldContainer[ChangeStep]
    def __init__(self, change_id: _Optional[str] = ..., tenant: _Optional[str] = ..., kind: _Optional[_Union[ChangeKind, str]] = ..., adapter_ids: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[ChangeState, str]] = ..., merge_id: _Optional[str] = ..., child_digest: _Optional[str] = ..., approved: _Optional[bool] = ..., begun_at_us: _Optional[int] = ..., created_at_us: _Optional[int] = ..., updated_at_us: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[ChangeStep, _Mapping]]] = ...) -> None: ...

class ProposeChangeRequest(_message.Message):
    __slots__ = ("tenant", "kind", "adapter_ids", "merge_id", "reason", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    MERGE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    kind: ChangeKind
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    merge_id: str
    reason: str
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, tenant: _Optional[str] = ..., kind: _Optional[_Union[ChangeKind, str]] = ..., adapter_ids: _Optional[_Iterable[str]] = ..., merge_id: _Optional[str] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class BeginChangeRequest(_message.Message):
    __slots__ = ("tenant", "change_id", "most_per_hour")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    MOST_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    change_id: str
    most_per_hour: int
    def __init__(self, tenant: _Optional[str] = ..., change_id: _Optional[str] = ..., most_per_hour: _Optional[int] = ...) -> None: ...

class AdvanceChangeRequest(_message.Message):
    __slots__ = ("tenant", "change_id", "state", "reason", "evidence", "child_digest")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    CHILD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    change_id: str
    state: ChangeState
    reason: str
    evidence: _containers.ScalarMap[str, float]
    child_digest: str
    def __init__(self, tenant: _Optional[str] = ..., change_id: _Optional[str] = ..., state: _Optional[_Union[ChangeState, str]] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ..., child_digest: _Optional[str] = ...) -> None: ...

class DecideChangeRequest(_message.Message):
    __slots__ = ("tenant", "change_id", "approve", "reason")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    APPROVE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    change_id: str
    approve: bool
    reason: str
    def __init__(self, tenant: _Optional[str] = ..., change_id: _Optional[str] = ..., approve: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class ListChangesRequest(_message.Message):
    __slots__ = ("tenant", "states", "page_size", "page_token", "all_tenants")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALL_TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    states: _containers.RepeatedScalarFieldContainer[ChangeState]
    page_size: int
    page_token: str
    all_tenants: bool
    def __init__(self, tenant: _Optional[str] = ..., states: _Optional[_Iterable[_Union[ChangeState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., all_tenants: _Optional[bool] = ...) -> None: ...

class ListChangesResponse(_message.Message):
    __slots__ = ("changes", "next_page_token")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[PlannedChange]
    next_page_token: str
    def __init__(self, changes: _Optional[_Iterable[_Union[PlannedChange, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("tenant", "all_tenants", "base_model", "reason", "thaw", "incident")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ALL_TENANTS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    THAW_FIELD_NUMBER: _ClassVar[int]
    INCIDENT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    all_tenants: bool
    base_model: str
    reason: str
    thaw: bool
    incident: bool
    def __init__(self, tenant: _Optional[str] = ..., all_tenants: _Optional[bool] = ..., base_model: _Optional[str] = ..., reason: _Optional[str] = ..., thaw: _Optional[bool] = ..., incident: _Optional[bool] = ...) -> None: ...

class FreezeResponse(_message.Message):
    __slots__ = ("freeze",)
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    freeze: FreezeRecord
    def __init__(self, freeze: _Optional[_Union[FreezeRecord, _Mapping]] = ...) -> None: ...

class FreezeRecord(_message.Message):
    __slots__ = ("tenant", "base_model", "reason", "by", "incident", "thawed", "since_us", "seen_at_us")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    INCIDENT_FIELD_NUMBER: _ClassVar[int]
    THAWED_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    SEEN_AT_US_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    base_model: str
    reason: str
    by: str
    incident: bool
    thawed: bool
    since_us: int
    seen_at_us: int
    def __init__(self, tenant: _Optional[str] = ..., base_model: _Optional[str] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ..., incident: _Optional[bool] = ..., thawed: _Optional[bool] = ..., since_us: _Optional[int] = ..., seen_at_us: _Optional[int] = ...) -> None: ...

class ListFreezesRequest(_message.Message):
    __slots__ = ("tenant", "all_tenants")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ALL_TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    all_tenants: bool
    def __init__(self, tenant: _Optional[str] = ..., all_tenants: _Optional[bool] = ...) -> None: ...

class ListFreezesResponse(_message.Message):
    __slots__ = ("freezes",)
    FREEZES_FIELD_NUMBER: _ClassVar[int]
    freezes: _containers.RepeatedCompositeFieldContainer[FreezeRecord]
    def __init__(self, freezes: _Optional[_Iterable[_Union[FreezeRecord, _Mapping]]] = ...) -> None: ...
