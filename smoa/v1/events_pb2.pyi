from smoa.validate import validate_pb2 as _validate_pb2
from smoa.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LifecycleAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIFECYCLE_ACTION_UNSPECIFIED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_REGISTERED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_UPDATED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_RETIRED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_RESTORED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_PURGED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_MERGED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_RANKER_PUBLISHED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_CANARY: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_PROMOTED: _ClassVar[LifecycleAction]
    LIFECYCLE_ACTION_ROLLED_BACK: _ClassVar[LifecycleAction]
LIFECYCLE_ACTION_UNSPECIFIED: LifecycleAction
LIFECYCLE_ACTION_REGISTERED: LifecycleAction
LIFECYCLE_ACTION_UPDATED: LifecycleAction
LIFECYCLE_ACTION_RETIRED: LifecycleAction
LIFECYCLE_ACTION_RESTORED: LifecycleAction
LIFECYCLE_ACTION_PURGED: LifecycleAction
LIFECYCLE_ACTION_MERGED: LifecycleAction
LIFECYCLE_ACTION_RANKER_PUBLISHED: LifecycleAction
LIFECYCLE_ACTION_CANARY: LifecycleAction
LIFECYCLE_ACTION_PROMOTED: LifecycleAction
LIFECYCLE_ACTION_ROLLED_BACK: LifecycleAction

class EventBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[PackedEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[PackedEvent, _Mapping]]] = ...) -> None: ...

class PackedEvent(_message.Message):
    __slots__ = ("key", "value", "sequence")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    sequence: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., sequence: _Optional[int] = ...) -> None: ...

class UsageEvent(_message.Message):
    __slots__ = ("adapter_id", "tenant", "decision_id", "tokens", "total_us", "first_token_us")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    tenant: str
    decision_id: str
    tokens: int
    total_us: int
    first_token_us: int
    def __init__(self, adapter_id: _Optional[str] = ..., tenant: _Optional[str] = ..., decision_id: _Optional[str] = ..., tokens: _Optional[int] = ..., total_us: _Optional[int] = ..., first_token_us: _Optional[int] = ...) -> None: ...

class AdapterOutcome(_message.Message):
    __slots__ = ("adapter_id", "decision_id", "tenant", "source_topic", "source_partition", "source_position", "used", "success", "weight", "occurred_at_us", "task_id", "together", "context", "expected", "taught", "user", "closeness", "base_model", "trial", "score", "corrects")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_TOPIC_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PARTITION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_POSITION_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_US_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    TAUGHT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    CLOSENESS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CORRECTS_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    decision_id: str
    tenant: str
    source_topic: str
    source_partition: int
    source_position: int
    used: bool
    success: bool
    weight: float
    occurred_at_us: int
    task_id: str
    together: _containers.RepeatedScalarFieldContainer[str]
    context: bytes
    expected: float
    taught: bool
    user: bytes
    closeness: _common_pb2.Closeness
    base_model: str
    trial: TrialEffect
    score: float
    corrects: Correction
    def __init__(self, adapter_id: _Optional[str] = ..., decision_id: _Optional[str] = ..., tenant: _Optional[str] = ..., source_topic: _Optional[str] = ..., source_partition: _Optional[int] = ..., source_position: _Optional[int] = ..., used: _Optional[bool] = ..., success: _Optional[bool] = ..., weight: _Optional[float] = ..., occurred_at_us: _Optional[int] = ..., task_id: _Optional[str] = ..., together: _Optional[_Iterable[str]] = ..., context: _Optional[bytes] = ..., expected: _Optional[float] = ..., taught: _Optional[bool] = ..., user: _Optional[bytes] = ..., closeness: _Optional[_Union[_common_pb2.Closeness, _Mapping]] = ..., base_model: _Optional[str] = ..., trial: _Optional[_Union[TrialEffect, _Mapping]] = ..., score: _Optional[float] = ..., corrects: _Optional[_Union[Correction, _Mapping]] = ...) -> None: ...

class Correction(_message.Message):
    __slots__ = ("verdict",)
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    verdict: float
    def __init__(self, verdict: _Optional[float] = ...) -> None: ...

class TrialEffect(_message.Message):
    __slots__ = ("parents", "control", "share")
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    parents: _containers.RepeatedScalarFieldContainer[str]
    control: bool
    share: float
    def __init__(self, parents: _Optional[_Iterable[str]] = ..., control: _Optional[bool] = ..., share: _Optional[float] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("key", "decision_id", "tenant", "input", "output", "occurred_at_us", "adapter_ids", "withdrawn")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    key: str
    decision_id: str
    tenant: str
    input: str
    output: str
    occurred_at_us: int
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    withdrawn: bool
    def __init__(self, key: _Optional[str] = ..., decision_id: _Optional[str] = ..., tenant: _Optional[str] = ..., input: _Optional[str] = ..., output: _Optional[str] = ..., occurred_at_us: _Optional[int] = ..., adapter_ids: _Optional[_Iterable[str]] = ..., withdrawn: _Optional[bool] = ...) -> None: ...

class LifecycleEvent(_message.Message):
    __slots__ = ("adapter_id", "tenant", "action", "reason", "occurred_at_us", "merge_id", "parents", "digest", "ranker", "previous_ranker", "evidence", "base_model", "shared")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_US_FIELD_NUMBER: _ClassVar[int]
    MERGE_ID_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_RANKER_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    tenant: str
    action: LifecycleAction
    reason: str
    occurred_at_us: int
    merge_id: str
    parents: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    ranker: bytes
    previous_ranker: bytes
    evidence: _containers.ScalarMap[str, float]
    base_model: str
    shared: bool
    def __init__(self, adapter_id: _Optional[str] = ..., tenant: _Optional[str] = ..., action: _Optional[_Union[LifecycleAction, str]] = ..., reason: _Optional[str] = ..., occurred_at_us: _Optional[int] = ..., merge_id: _Optional[str] = ..., parents: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ..., ranker: _Optional[bytes] = ..., previous_ranker: _Optional[bytes] = ..., evidence: _Optional[_Mapping[str, float]] = ..., base_model: _Optional[str] = ..., shared: _Optional[bool] = ...) -> None: ...

class ExecutorStatus(_message.Message):
    __slots__ = ("address", "base_model", "free_slots", "active", "hosted", "running", "waiting", "rows", "reported_at_us", "leaving", "model", "base_model_name")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    HOSTED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    address: str
    base_model: str
    free_slots: int
    active: _containers.RepeatedScalarFieldContainer[str]
    hosted: _containers.RepeatedScalarFieldContainer[str]
    running: int
    waiting: int
    rows: int
    reported_at_us: int
    leaving: bool
    model: _common_pb2.ModelShape
    base_model_name: str
    def __init__(self, address: _Optional[str] = ..., base_model: _Optional[str] = ..., free_slots: _Optional[int] = ..., active: _Optional[_Iterable[str]] = ..., hosted: _Optional[_Iterable[str]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., rows: _Optional[int] = ..., reported_at_us: _Optional[int] = ..., leaving: _Optional[bool] = ..., model: _Optional[_Union[_common_pb2.ModelShape, _Mapping]] = ..., base_model_name: _Optional[str] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("topic", "partition", "offset", "key", "value", "reason", "dead_at_us", "index", "producer_id", "sequence")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEAD_AT_US_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    reason: str
    dead_at_us: int
    index: int
    producer_id: str
    sequence: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., reason: _Optional[str] = ..., dead_at_us: _Optional[int] = ..., index: _Optional[int] = ..., producer_id: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class AuditEvent(_message.Message):
    __slots__ = ("caller", "method", "tenant", "subject", "roles", "status", "count", "occurred_at_us", "reason", "evidence", "before", "after")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CALLER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_US_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    caller: str
    method: str
    tenant: str
    subject: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    status: str
    count: int
    occurred_at_us: int
    reason: str
    evidence: _containers.ScalarMap[str, float]
    before: str
    after: str
    def __init__(self, caller: _Optional[str] = ..., method: _Optional[str] = ..., tenant: _Optional[str] = ..., subject: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., status: _Optional[str] = ..., count: _Optional[int] = ..., occurred_at_us: _Optional[int] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...
