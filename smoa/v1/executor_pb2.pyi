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

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_END: _ClassVar[FinishReason]
    FINISH_REASON_STOP_STRING: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_END: FinishReason
FINISH_REASON_STOP_STRING: FinishReason
FINISH_REASON_LENGTH: FinishReason

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("tenant", "prompt", "adapters", "decision_id", "max_tokens", "temperature", "top_p", "stop", "seed", "stages", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "n", "ignore_eos", "stream_usage", "messages")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STREAM_USAGE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    prompt: str
    adapters: _containers.RepeatedCompositeFieldContainer[_common_pb2.WeightedAdapter]
    decision_id: str
    max_tokens: int
    temperature: float
    top_p: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    stages: _containers.RepeatedCompositeFieldContainer[_common_pb2.Stage]
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    logprobs: int
    n: int
    ignore_eos: bool
    stream_usage: bool
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, tenant: _Optional[str] = ..., prompt: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_common_pb2.WeightedAdapter, _Mapping]]] = ..., decision_id: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[_common_pb2.Stage, _Mapping]]] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., logprobs: _Optional[int] = ..., n: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., stream_usage: _Optional[bool] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "queue_us", "first_token_us", "total_us", "adapter_hits", "adapter_misses", "finish_reason", "stages", "seed")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_HITS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MISSES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    queue_us: int
    first_token_us: int
    total_us: int
    adapter_hits: int
    adapter_misses: int
    finish_reason: FinishReason
    stages: _containers.RepeatedCompositeFieldContainer[Usage]
    seed: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., queue_us: _Optional[int] = ..., first_token_us: _Optional[int] = ..., total_us: _Optional[int] = ..., adapter_hits: _Optional[int] = ..., adapter_misses: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., stages: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., seed: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "tokens", "usage", "index", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: int
    usage: Usage
    index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token", "text", "logprob", "alternatives")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    token: int
    text: str
    logprob: float
    alternatives: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, token: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("tenant", "prompt", "completion", "adapters", "messages", "completions")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    prompt: str
    completion: str
    adapters: _containers.RepeatedCompositeFieldContainer[_common_pb2.WeightedAdapter]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    completions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tenant: _Optional[str] = ..., prompt: _Optional[str] = ..., completion: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_common_pb2.WeightedAdapter, _Mapping]]] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., completions: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("token_logprobs", "logprob", "scores")
    TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    token_logprobs: _containers.RepeatedScalarFieldContainer[float]
    logprob: float
    scores: _containers.RepeatedCompositeFieldContainer[CompletionScore]
    def __init__(self, token_logprobs: _Optional[_Iterable[float]] = ..., logprob: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[CompletionScore, _Mapping]]] = ...) -> None: ...

class CompletionScore(_message.Message):
    __slots__ = ("token_logprobs", "logprob")
    TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_logprobs: _containers.RepeatedScalarFieldContainer[float]
    logprob: float
    def __init__(self, token_logprobs: _Optional[_Iterable[float]] = ..., logprob: _Optional[float] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("base_model", "base_model_name", "slots", "residents", "queued", "running", "adapter_hits", "adapter_misses", "evictions", "max_batch", "spooled_events", "host_hits", "store_loads", "store_load_us", "slot_bytes", "host_bytes", "cache_blocks", "cache_blocks_free", "prefix_lookups", "prefix_hits", "preemptions", "model")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_HITS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MISSES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    HOST_HITS_FIELD_NUMBER: _ClassVar[int]
    STORE_LOADS_FIELD_NUMBER: _ClassVar[int]
    STORE_LOAD_US_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    base_model_name: str
    slots: int
    residents: _containers.RepeatedCompositeFieldContainer[Resident]
    queued: int
    running: int
    adapter_hits: int
    adapter_misses: int
    evictions: int
    max_batch: int
    spooled_events: int
    host_hits: int
    store_loads: int
    store_load_us: int
    slot_bytes: int
    host_bytes: int
    cache_blocks: int
    cache_blocks_free: int
    prefix_lookups: int
    prefix_hits: int
    preemptions: int
    model: _common_pb2.ModelShape
    def __init__(self, base_model: _Optional[str] = ..., base_model_name: _Optional[str] = ..., slots: _Optional[int] = ..., residents: _Optional[_Iterable[_Union[Resident, _Mapping]]] = ..., queued: _Optional[int] = ..., running: _Optional[int] = ..., adapter_hits: _Optional[int] = ..., adapter_misses: _Optional[int] = ..., evictions: _Optional[int] = ..., max_batch: _Optional[int] = ..., spooled_events: _Optional[int] = ..., host_hits: _Optional[int] = ..., store_loads: _Optional[int] = ..., store_load_us: _Optional[int] = ..., slot_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., cache_blocks: _Optional[int] = ..., cache_blocks_free: _Optional[int] = ..., prefix_lookups: _Optional[int] = ..., prefix_hits: _Optional[int] = ..., preemptions: _Optional[int] = ..., model: _Optional[_Union[_common_pb2.ModelShape, _Mapping]] = ...) -> None: ...

class Resident(_message.Message):
    __slots__ = ("adapter_id", "version", "digest", "leases", "bytes")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    version: int
    digest: str
    leases: int
    bytes: int
    def __init__(self, adapter_id: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., leases: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
