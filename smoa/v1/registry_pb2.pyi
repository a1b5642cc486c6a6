from smoa.validate import validate_pb2 as _validate_pb2
from smoa.v1 import access_pb2 as _access_pb2
from smoa.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CompositionWeighting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPOSITION_WEIGHTING_UNSPECIFIED: _ClassVar[CompositionWeighting]
    COMPOSITION_WEIGHTING_MEASURED_SUCCESS: _ClassVar[CompositionWeighting]
COMPOSITION_WEIGHTING_UNSPECIFIED: CompositionWeighting
COMPOSITION_WEIGHTING_MEASURED_SUCCESS: CompositionWeighting

class AdapterStatistics(_message.Message):
    __slots__ = ("uses", "outcomes", "successes", "generations", "tokens", "recent_uses", "recent_outcomes", "recent_successes", "recent_at_us", "epoch", "counted_since_us", "epochs", "fresh_outcomes", "fresh_successes", "last_used_at_us", "longest_gap_us", "aside_outcomes", "aside_successes", "verdicts", "first_token_us")
    class EpochsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: EpochCounts
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[EpochCounts, _Mapping]] = ...) -> None: ...
    USES_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECENT_USES_FIELD_NUMBER: _ClassVar[int]
    RECENT_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    RECENT_SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    RECENT_AT_US_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COUNTED_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    FRESH_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    FRESH_SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_US_FIELD_NUMBER: _ClassVar[int]
    LONGEST_GAP_US_FIELD_NUMBER: _ClassVar[int]
    ASIDE_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    ASIDE_SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    uses: int
    outcomes: int
    successes: float
    generations: int
    tokens: int
    recent_uses: float
    recent_outcomes: float
    recent_successes: float
    recent_at_us: int
    epoch: str
    counted_since_us: int
    epochs: _containers.MessageMap[str, EpochCounts]
    fresh_outcomes: float
    fresh_successes: float
    last_used_at_us: int
    longest_gap_us: int
    aside_outcomes: int
    aside_successes: float
    verdicts: int
    first_token_us: int
    def __init__(self, uses: _Optional[int] = ..., outcomes: _Optional[int] = ..., successes: _Optional[float] = ..., generations: _Optional[int] = ..., tokens: _Optional[int] = ..., recent_uses: _Optional[float] = ..., recent_outcomes: _Optional[float] = ..., recent_successes: _Optional[float] = ..., recent_at_us: _Optional[int] = ..., epoch: _Optional[str] = ..., counted_since_us: _Optional[int] = ..., epochs: _Optional[_Mapping[str, EpochCounts]] = ..., fresh_outcomes: _Optional[float] = ..., fresh_successes: _Optional[float] = ..., last_used_at_us: _Optional[int] = ..., longest_gap_us: _Optional[int] = ..., aside_outcomes: _Optional[int] = ..., aside_successes: _Optional[float] = ..., verdicts: _Optional[int] = ..., first_token_us: _Optional[int] = ...) -> None: ...

class EpochCounts(_message.Message):
    __slots__ = ("uses", "outcomes", "successes", "generations", "tokens", "aside_outcomes", "aside_successes", "verdicts", "first_token_us")
    USES_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ASIDE_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    ASIDE_SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    uses: int
    outcomes: int
    successes: float
    generations: int
    tokens: int
    aside_outcomes: int
    aside_successes: float
    verdicts: int
    first_token_us: int
    def __init__(self, uses: _Optional[int] = ..., outcomes: _Optional[int] = ..., successes: _Optional[float] = ..., generations: _Optional[int] = ..., tokens: _Optional[int] = ..., aside_outcomes: _Optional[int] = ..., aside_successes: _Optional[float] = ..., verdicts: _Optional[int] = ..., first_token_us: _Optional[int] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("adapter_id", "version", "digest", "tenant", "name", "kind", "granularity", "specialization", "base_model", "rank", "modules", "parameter_count", "tags", "shared", "example_count", "parents", "state", "state_reason", "created_at_us", "updated_at_us", "statistics", "merge_id", "file_bytes", "pinned", "canary_share", "canary_baseline", "restored_at_us", "restored_baseline", "canary_since_us", "examples_digest", "archived_at_us")
    class CanaryBaselineEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: AdapterStatistics
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[AdapterStatistics, _Mapping]] = ...) -> None: ...
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    SPECIALIZATION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    MERGE_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    CANARY_BASELINE_FIELD_NUMBER: _ClassVar[int]
    RESTORED_AT_US_FIELD_NUMBER: _ClassVar[int]
    RESTORED_BASELINE_FIELD_NUMBER: _ClassVar[int]
    CANARY_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARCHIVED_AT_US_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    version: int
    digest: str
    tenant: str
    name: str
    kind: _common_pb2.AdapterKind
    granularity: _common_pb2.Granularity
    specialization: _common_pb2.Specialization
    base_model: str
    rank: int
    modules: _containers.RepeatedScalarFieldContainer[str]
    parameter_count: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    shared: bool
    example_count: int
    parents: _containers.RepeatedScalarFieldContainer[str]
    state: _common_pb2.AdapterState
    state_reason: str
    created_at_us: int
    updated_at_us: int
    statistics: AdapterStatistics
    merge_id: str
    file_bytes: int
    pinned: bool
    canary_share: float
    canary_baseline: _containers.MessageMap[str, AdapterStatistics]
    restored_at_us: int
    restored_baseline: AdapterStatistics
    canary_since_us: int
    examples_digest: str
    archived_at_us: int
    def __init__(self, adapter_id: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., tenant: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.AdapterKind, str]] = ..., granularity: _Optional[_Union[_common_pb2.Granularity, str]] = ..., specialization: _Optional[_Union[_common_pb2.Specialization, str]] = ..., base_model: _Optional[str] = ..., rank: _Optional[int] = ..., modules: _Optional[_Iterable[str]] = ..., parameter_count: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., shared: _Optional[bool] = ..., example_count: _Optional[int] = ..., parents: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[_common_pb2.AdapterState, str]] = ..., state_reason: _Optional[str] = ..., created_at_us: _Optional[int] = ..., updated_at_us: _Optional[int] = ..., statistics: _Optional[_Union[AdapterStatistics, _Mapping]] = ..., merge_id: _Optional[str] = ..., file_bytes: _Optional[int] = ..., pinned: _Optional[bool] = ..., canary_share: _Optional[float] = ..., canary_baseline: _Optional[_Mapping[str, AdapterStatistics]] = ..., restored_at_us: _Optional[int] = ..., restored_baseline: _Optional[_Union[AdapterStatistics, _Mapping]] = ..., canary_since_us: _Optional[int] = ..., examples_digest: _Optional[str] = ..., archived_at_us: _Optional[int] = ...) -> None: ...

class RegisterAdapterRequest(_message.Message):
    __slots__ = ("tenant", "digest", "examples", "replace")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    digest: str
    examples: _containers.RepeatedScalarFieldContainer[str]
    replace: bool
    def __init__(self, tenant: _Optional[str] = ..., digest: _Optional[str] = ..., examples: _Optional[_Iterable[str]] = ..., replace: _Optional[bool] = ...) -> None: ...

class UploadAdapterRequest(_message.Message):
    __slots__ = ("register", "file_bytes", "part")
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    register: RegisterAdapterRequest
    file_bytes: int
    part: bytes
    def __init__(self, register: _Optional[_Union[RegisterAdapterRequest, _Mapping]] = ..., file_bytes: _Optional[int] = ..., part: _Optional[bytes] = ...) -> None: ...

class DownloadAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class DownloadAdapterResponse(_message.Message):
    __slots__ = ("part",)
    PART_FIELD_NUMBER: _ClassVar[int]
    part: bytes
    def __init__(self, part: _Optional[bytes] = ...) -> None: ...

class ImportedAdapter(_message.Message):
    __slots__ = ("adapter", "vector", "examples")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    adapter: Adapter
    vector: _containers.RepeatedScalarFieldContainer[float]
    examples: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, adapter: _Optional[_Union[Adapter, _Mapping]] = ..., vector: _Optional[_Iterable[float]] = ..., examples: _Optional[_Iterable[str]] = ...) -> None: ...

class ImportAdaptersRequest(_message.Message):
    __slots__ = ("tenant", "adapters", "files_unchecked")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    FILES_UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapters: _containers.RepeatedCompositeFieldContainer[ImportedAdapter]
    files_unchecked: bool
    def __init__(self, tenant: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[ImportedAdapter, _Mapping]]] = ..., files_unchecked: _Optional[bool] = ...) -> None: ...

class ImportAdaptersResponse(_message.Message):
    __slots__ = ("durable", "added", "missing")
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    durable: int
    added: int
    missing: int
    def __init__(self, durable: _Optional[int] = ..., added: _Optional[int] = ..., missing: _Optional[int] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("tenant", "base_model", "tags", "states", "page_size", "page_token", "all_tenants", "name", "written_since_us")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALL_TENANTS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    base_model: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    states: _containers.RepeatedScalarFieldContainer[_common_pb2.AdapterState]
    page_size: int
    page_token: str
    all_tenants: bool
    name: str
    written_since_us: int
    def __init__(self, tenant: _Optional[str] = ..., base_model: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., states: _Optional[_Iterable[_Union[_common_pb2.AdapterState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., all_tenants: _Optional[bool] = ..., name: _Optional[str] = ..., written_since_us: _Optional[int] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id", "name", "tags", "replace_tags", "examples", "pinned")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    REPLACE_TAGS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    replace_tags: bool
    examples: _containers.RepeatedScalarFieldContainer[str]
    pinned: bool
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., replace_tags: _Optional[bool] = ..., examples: _Optional[_Iterable[str]] = ..., pinned: _Optional[bool] = ...) -> None: ...

class ReportStatisticsRequest(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[ReportedStatistics]
    def __init__(self, reports: _Optional[_Iterable[_Union[ReportedStatistics, _Mapping]]] = ...) -> None: ...

class ReportedStatistics(_message.Message):
    __slots__ = ("tenant", "adapter_id", "statistics")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    statistics: AdapterStatistics
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ..., statistics: _Optional[_Union[AdapterStatistics, _Mapping]] = ...) -> None: ...

class ReportStatisticsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ReportResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ReportResult, _Mapping]]] = ...) -> None: ...

class ReportResult(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RetireAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id", "reason", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    reason: str
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RestoreAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class ArchiveAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class PurgeAdapterRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class ApplyMergeRequest(_message.Message):
    __slots__ = ("tenant", "merge_id", "child_digest", "parent_ids", "reason", "canary_share", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MERGE_ID_FIELD_NUMBER: _ClassVar[int]
    CHILD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARENT_IDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    merge_id: str
    child_digest: str
    parent_ids: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    canary_share: float
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, tenant: _Optional[str] = ..., merge_id: _Optional[str] = ..., child_digest: _Optional[str] = ..., parent_ids: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., canary_share: _Optional[float] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class TryVersionRequest(_message.Message):
    __slots__ = ("tenant", "adapter_id", "older_id", "canary_share", "reason", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    OLDER_ID_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    adapter_id: str
    older_id: str
    canary_share: float
    reason: str
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, tenant: _Optional[str] = ..., adapter_id: _Optional[str] = ..., older_id: _Optional[str] = ..., canary_share: _Optional[float] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SettleTrialRequest(_message.Message):
    __slots__ = ("tenant", "child_id", "promote", "reason", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CHILD_ID_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    child_id: str
    promote: bool
    reason: str
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, tenant: _Optional[str] = ..., child_id: _Optional[str] = ..., promote: _Optional[bool] = ..., reason: _Optional[str] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Composition(_message.Message):
    __slots__ = ("composition_id", "tenant", "name", "root", "created_at_us", "weighting", "adapter_ids", "children", "parents")
    COMPOSITION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    composition_id: str
    tenant: str
    name: str
    root: CompositionNode
    created_at_us: int
    weighting: CompositionWeighting
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    children: _containers.RepeatedScalarFieldContainer[str]
    parents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, composition_id: _Optional[str] = ..., tenant: _Optional[str] = ..., name: _Optional[str] = ..., root: _Optional[_Union[CompositionNode, _Mapping]] = ..., created_at_us: _Optional[int] = ..., weighting: _Optional[_Union[CompositionWeighting, str]] = ..., adapter_ids: _Optional[_Iterable[str]] = ..., children: _Optional[_Iterable[str]] = ..., parents: _Optional[_Iterable[str]] = ...) -> None: ...

class CompositionNode(_message.Message):
    __slots__ = ("strategy", "children")
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    strategy: _common_pb2.CompositionStrategy
    children: _containers.RepeatedCompositeFieldContainer[CompositionChild]
    def __init__(self, strategy: _Optional[_Union[_common_pb2.CompositionStrategy, str]] = ..., children: _Optional[_Iterable[_Union[CompositionChild, _Mapping]]] = ...) -> None: ...

class CompositionChild(_message.Message):
    __slots__ = ("weight", "adapter_id", "node", "composition", "max_tokens")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    weight: float
    adapter_id: str
    node: CompositionNode
    composition: str
    max_tokens: int
    def __init__(self, weight: _Optional[float] = ..., adapter_id: _Optional[str] = ..., node: _Optional[_Union[CompositionNode, _Mapping]] = ..., composition: _Optional[str] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class CreateCompositionRequest(_message.Message):
    __slots__ = ("tenant", "name", "root", "weighting")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    root: CompositionNode
    weighting: CompositionWeighting
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ..., root: _Optional[_Union[CompositionNode, _Mapping]] = ..., weighting: _Optional[_Union[CompositionWeighting, str]] = ...) -> None: ...

class GetCompositionRequest(_message.Message):
    __slots__ = ("tenant", "composition_id", "name")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    composition_id: str
    name: str
    def __init__(self, tenant: _Optional[str] = ..., composition_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ListCompositionsRequest(_message.Message):
    __slots__ = ("tenant", "page_size", "page_token", "all_tenants")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALL_TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    page_size: int
    page_token: str
    all_tenants: bool
    def __init__(self, tenant: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., all_tenants: _Optional[bool] = ...) -> None: ...

class ListCompositionsResponse(_message.Message):
    __slots__ = ("compositions", "next_page_token")
    COMPOSITIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    compositions: _containers.RepeatedCompositeFieldContainer[Composition]
    next_page_token: str
    def __init__(self, compositions: _Optional[_Iterable[_Union[Composition, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteCompositionRequest(_message.Message):
    __slots__ = ("tenant", "composition_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    composition_id: str
    def __init__(self, tenant: _Optional[str] = ..., composition_id: _Optional[str] = ...) -> None: ...

class DeleteCompositionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
