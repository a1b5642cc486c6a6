from smoa.validate import validate_pb2 as _validate_pb2
from smoa.v1 import access_pb2 as _access_pb2
from smoa.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("tenant", "base_model", "query", "strategy", "top_k", "score_threshold", "tags", "specialization", "task_id", "composition", "look", "explain", "vector", "turns", "session", "new_topic", "user", "own_only", "model", "names")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SPECIALIZATION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    COMPOSITION_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NEW_TOPIC_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    OWN_ONLY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    base_model: str
    query: str
    strategy: _common_pb2.RoutingStrategy
    top_k: int
    score_threshold: float
    tags: _containers.RepeatedScalarFieldContainer[str]
    specialization: _common_pb2.Specialization
    task_id: str
    composition: str
    look: bool
    explain: bool
    vector: _containers.RepeatedScalarFieldContainer[float]
    turns: _containers.RepeatedScalarFieldContainer[str]
    session: str
    new_topic: bool
    user: str
    own_only: bool
    model: str
    names: bool
    def __init__(self, tenant: _Optional[str] = ..., base_model: _Optional[str] = ..., query: _Optional[str] = ..., strategy: _Optional[_Union[_common_pb2.RoutingStrategy, str]] = ..., top_k: _Optional[int] = ..., score_threshold: _Optional[float] = ..., tags: _Optional[_Iterable[str]] = ..., specialization: _Optional[_Union[_common_pb2.Specialization, str]] = ..., task_id: _Optional[str] = ..., composition: _Optional[str] = ..., look: _Optional[bool] = ..., explain: _Optional[bool] = ..., vector: _Optional[_Iterable[float]] = ..., turns: _Optional[_Iterable[str]] = ..., session: _Optional[str] = ..., new_topic: _Optional[bool] = ..., user: _Optional[str] = ..., own_only: _Optional[bool] = ..., model: _Optional[str] = ..., names: _Optional[bool] = ...) -> None: ...

class ListExecutorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExecutorsResponse(_message.Message):
    __slots__ = ("executors",)
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    executors: _containers.RepeatedCompositeFieldContainer[Executor]
    def __init__(self, executors: _Optional[_Iterable[_Union[Executor, _Mapping]]] = ...) -> None: ...

class Executor(_message.Message):
    __slots__ = ("address", "base_model", "base_model_name", "load")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    address: str
    base_model: str
    base_model_name: str
    load: float
    def __init__(self, address: _Optional[str] = ..., base_model: _Optional[str] = ..., base_model_name: _Optional[str] = ..., load: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("decision_id", "tenant", "base_model", "strategy", "adapters", "cached", "handler_us", "decided_at_us", "stages", "confidence", "ranked", "ranker", "executor", "task_id", "explanations", "context", "by_conversation", "closeness", "user")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    HANDLER_US_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    RANKED_FIELD_NUMBER: _ClassVar[int]
    RANKER_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    BY_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    CLOSENESS_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    tenant: str
    base_model: str
    strategy: _common_pb2.RoutingStrategy
    adapters: _containers.RepeatedCompositeFieldContainer[_common_pb2.WeightedAdapter]
    cached: bool
    handler_us: int
    decided_at_us: int
    stages: _containers.RepeatedCompositeFieldContainer[_common_pb2.Stage]
    confidence: float
    ranked: _containers.RepeatedCompositeFieldContainer[RankedCandidate]
    ranker: str
    executor: str
    task_id: str
    explanations: _containers.RepeatedCompositeFieldContainer[CandidateExplanation]
    context: bytes
    by_conversation: bool
    closeness: _common_pb2.Closeness
    user: bytes
    def __init__(self, decision_id: _Optional[str] = ..., tenant: _Optional[str] = ..., base_model: _Optional[str] = ..., strategy: _Optional[_Union[_common_pb2.RoutingStrategy, str]] = ..., adapters: _Optional[_Iterable[_Union[_common_pb2.WeightedAdapter, _Mapping]]] = ..., cached: _Optional[bool] = ..., handler_us: _Optional[int] = ..., decided_at_us: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[_common_pb2.Stage, _Mapping]]] = ..., confidence: _Optional[float] = ..., ranked: _Optional[_Iterable[_Union[RankedCandidate, _Mapping]]] = ..., ranker: _Optional[str] = ..., executor: _Optional[str] = ..., task_id: _Optional[str] = ..., explanations: _Optional[_Iterable[_Union[CandidateExplanation, _Mapping]]] = ..., context: _Optional[bytes] = ..., by_conversation: _Optional[bool] = ..., closeness: _Optional[_Union[_common_pb2.Closeness, _Mapping]] = ..., user: _Optional[bytes] = ...) -> None: ...

class CandidateExplanation(_message.Message):
    __slots__ = ("adapter_id", "name", "score", "cosine", "example_cosine", "task", "confidence", "weight", "reason", "probability", "before", "tenant")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_COSINE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    name: str
    score: float
    cosine: float
    example_cosine: float
    task: float
    confidence: float
    weight: float
    reason: str
    probability: float
    before: float
    tenant: str
    def __init__(self, adapter_id: _Optional[str] = ..., name: _Optional[str] = ..., score: _Optional[float] = ..., cosine: _Optional[float] = ..., example_cosine: _Optional[float] = ..., task: _Optional[float] = ..., confidence: _Optional[float] = ..., weight: _Optional[float] = ..., reason: _Optional[str] = ..., probability: _Optional[float] = ..., before: _Optional[float] = ..., tenant: _Optional[str] = ...) -> None: ...

class RankedCandidate(_message.Message):
    __slots__ = ("adapter_id", "features", "propensity", "expected")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    features: _containers.RepeatedScalarFieldContainer[float]
    propensity: float
    expected: float
    def __init__(self, adapter_id: _Optional[str] = ..., features: _Optional[_Iterable[float]] = ..., propensity: _Optional[float] = ..., expected: _Optional[float] = ...) -> None: ...

class RouteBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RouteRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RouteRequest, _Mapping]]] = ...) -> None: ...

class RouteBatchResponse(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    def __init__(self, decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ...) -> None: ...
