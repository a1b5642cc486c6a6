from smoa.validate import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Granularity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRANULARITY_UNSPECIFIED: _ClassVar[Granularity]
    GRANULARITY_NANO: _ClassVar[Granularity]
    GRANULARITY_MICRO: _ClassVar[Granularity]
    GRANULARITY_MINI: _ClassVar[Granularity]
    GRANULARITY_SMALL: _ClassVar[Granularity]
    GRANULARITY_MEDIUM: _ClassVar[Granularity]
    GRANULARITY_LARGE: _ClassVar[Granularity]

class Specialization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPECIALIZATION_UNSPECIFIED: _ClassVar[Specialization]
    SPECIALIZATION_GENERAL: _ClassVar[Specialization]
    SPECIALIZATION_DOMAIN: _ClassVar[Specialization]
    SPECIALIZATION_TASK: _ClassVar[Specialization]
    SPECIALIZATION_LANGUAGE: _ClassVar[Specialization]
    SPECIALIZATION_STYLE: _ClassVar[Specialization]
    SPECIALIZATION_FORMAT: _ClassVar[Specialization]
    SPECIALIZATION_REASONING: _ClassVar[Specialization]
    SPECIALIZATION_TOOL: _ClassVar[Specialization]
    SPECIALIZATION_PERSONA: _ClassVar[Specialization]
    SPECIALIZATION_SAFETY: _ClassVar[Specialization]

class RoutingStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTING_STRATEGY_UNSPECIFIED: _ClassVar[RoutingStrategy]
    ROUTING_STRATEGY_SEMANTIC: _ClassVar[RoutingStrategy]
    ROUTING_STRATEGY_TASK: _ClassVar[RoutingStrategy]
    ROUTING_STRATEGY_LEARNED: _ClassVar[RoutingStrategy]
    ROUTING_STRATEGY_HYBRID: _ClassVar[RoutingStrategy]
    ROUTING_STRATEGY_HIERARCHICAL: _ClassVar[RoutingStrategy]
    ROUTING_STRATEGY_MIXTURE: _ClassVar[RoutingStrategy]

class CompositionStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPOSITION_STRATEGY_UNSPECIFIED: _ClassVar[CompositionStrategy]
    COMPOSITION_STRATEGY_PARALLEL: _ClassVar[CompositionStrategy]
    COMPOSITION_STRATEGY_SEQUENTIAL: _ClassVar[CompositionStrategy]
    COMPOSITION_STRATEGY_HIERARCHICAL: _ClassVar[CompositionStrategy]

class AdapterKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_KIND_UNSPECIFIED: _ClassVar[AdapterKind]
    ADAPTER_KIND_LORA: _ClassVar[AdapterKind]
    ADAPTER_KIND_LORA_XS: _ClassVar[AdapterKind]

class AdapterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_STATE_UNSPECIFIED: _ClassVar[AdapterState]
    ADAPTER_STATE_ACTIVE: _ClassVar[AdapterState]
    ADAPTER_STATE_RETIRED: _ClassVar[AdapterState]
    ADAPTER_STATE_PURGED: _ClassVar[AdapterState]
    ADAPTER_STATE_CANARY: _ClassVar[AdapterState]
    ADAPTER_STATE_MISSING: _ClassVar[AdapterState]
GRANULARITY_UNSPECIFIED: Granularity
GRANULARITY_NANO: Granularity
GRANULARITY_MICRO: Granularity
GRANULARITY_MINI: Granularity
GRANULARITY_SMALL: Granularity
GRANULARITY_MEDIUM: Granularity
GRANULARITY_LARGE: Granularity
SPECIALIZATION_UNSPECIFIED: Specialization
SPECIALIZATION_GENERAL: Specialization
SPECIALIZATION_DOMAIN: Specialization
SPECIALIZATION_TASK: Specialization
SPECIALIZATION_LANGUAGE: Specialization
SPECIALIZATION_STYLE: Specialization
SPECIALIZATION_FORMAT: Specialization
SPECIALIZATION_REASONING: Specialization
SPECIALIZATION_TOOL: Specialization
SPECIALIZATION_PERSONA: Specialization
SPECIALIZATION_SAFETY: Specialization
ROUTING_STRATEGY_UNSPECIFIED: RoutingStrategy
ROUTING_STRATEGY_SEMANTIC: RoutingStrategy
ROUTING_STRATEGY_TASK: RoutingStrategy
ROUTING_STRATEGY_LEARNED: RoutingStrategy
ROUTING_STRATEGY_HYBRID: RoutingStrategy
ROUTING_STRATEGY_HIERARCHICAL: RoutingStrategy
ROUTING_STRATEGY_MIXTURE: RoutingStrategy
COMPOSITION_STRATEGY_UNSPECIFIED: CompositionStrategy
COMPOSITION_STRATEGY_PARALLEL: CompositionStrategy
COMPOSITION_STRATEGY_SEQUENTIAL: CompositionStrategy
COMPOSITION_STRATEGY_HIERARCHICAL: CompositionStrategy
ADAPTER_KIND_UNSPECIFIED: AdapterKind
ADAPTER_KIND_LORA: AdapterKind
ADAPTER_KIND_LORA_XS: AdapterKind
ADAPTER_STATE_UNSPECIFIED: AdapterState
ADAPTER_STATE_ACTIVE: AdapterState
ADAPTER_STATE_RETIRED: AdapterState
ADAPTER_STATE_PURGED: AdapterState
ADAPTER_STATE_CANARY: AdapterState
ADAPTER_STATE_MISSING: AdapterState

class WeightedAdapter(_message.Message):
    __slots__ = ("adapter_id", "version", "digest", "weight", "score", "name", "trial")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    version: int
    digest: str
    weight: float
    score: float
    name: str
    trial: TrialSide
    def __init__(self, adapter_id: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., weight: _Optional[float] = ..., score: _Optional[float] = ..., name: _Optional[str] = ..., trial: _Optional[_Union[TrialSide, _Mapping]] = ...) -> None: ...

class TrialSide(_message.Message):
    __slots__ = ("stands_for", "control_of", "share")
    STANDS_FOR_FIELD_NUMBER: _ClassVar[int]
    CONTROL_OF_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    stands_for: _containers.RepeatedScalarFieldContainer[str]
    control_of: str
    share: float
    def __init__(self, stands_for: _Optional[_Iterable[str]] = ..., control_of: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("adapters", "max_tokens")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[WeightedAdapter]
    max_tokens: int
    def __init__(self, adapters: _Optional[_Iterable[_Union[WeightedAdapter, _Mapping]]] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class ModelShape(_message.Message):
    __slots__ = ("layers", "modules", "max_rank", "max_lora_xs_rank", "max_adapter_bytes", "weight_bytes")
    class ModulesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LinearShape
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[LinearShape, _Mapping]] = ...) -> None: ...
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    MAX_LORA_XS_RANK_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    layers: int
    modules: _containers.MessageMap[str, LinearShape]
    max_rank: int
    max_lora_xs_rank: int
    max_adapter_bytes: int
    weight_bytes: int
    def __init__(self, layers: _Optional[int] = ..., modules: _Optional[_Mapping[str, LinearShape]] = ..., max_rank: _Optional[int] = ..., max_lora_xs_rank: _Optional[int] = ..., max_adapter_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ...) -> None: ...

class LinearShape(_message.Message):
    __slots__ = ("outputs", "inputs")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: int
    inputs: int
    def __init__(self, outputs: _Optional[int] = ..., inputs: _Optional[int] = ...) -> None: ...

class Closeness(_message.Message):
    __slots__ = ("value", "stands_for")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STANDS_FOR_FIELD_NUMBER: _ClassVar[int]
    value: float
    stands_for: int
    def __init__(self, value: _Optional[float] = ..., stands_for: _Optional[int] = ...) -> None: ...
