from smoa.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeptSketch(_message.Message):
    __slots__ = ("version", "layers", "values")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    version: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    def __init__(self, version: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ...) -> None: ...

class Landmark(_message.Message):
    __slots__ = ("offset", "written_ms", "incarnation")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_MS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    offset: int
    written_ms: int
    incarnation: int
    def __init__(self, offset: _Optional[int] = ..., written_ms: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Landmarks(_message.Message):
    __slots__ = ("topics",)
    class TopicsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Landmark
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Landmark, _Mapping]] = ...) -> None: ...
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.MessageMap[str, Landmark]
    def __init__(self, topics: _Optional[_Mapping[str, Landmark]] = ...) -> None: ...

class JoinSegment(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, entries: _Optional[_Iterable[bytes]] = ...) -> None: ...

class JoinEntry(_message.Message):
    __slots__ = ("decision_id", "tenant", "decided", "decided_position", "decided_at_us", "task_id", "adapter_ids", "weights", "verdicts", "early", "first_seen_us", "context", "expected", "user", "closeness", "base_model", "on_trial")
    class OnTrialEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _common_pb2.TrialSide
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_common_pb2.TrialSide, _Mapping]] = ...) -> None: ...
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    DECIDED_POSITION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_US_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    CLOSENESS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    ON_TRIAL_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    tenant: str
    decided: bool
    decided_position: int
    decided_at_us: int
    task_id: str
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    weights: _containers.RepeatedScalarFieldContainer[float]
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    early: int
    first_seen_us: int
    context: bytes
    expected: _containers.RepeatedScalarFieldContainer[float]
    user: bytes
    closeness: _common_pb2.Closeness
    base_model: str
    on_trial: _containers.MessageMap[str, _common_pb2.TrialSide]
    def __init__(self, decision_id: _Optional[str] = ..., tenant: _Optional[str] = ..., decided: _Optional[bool] = ..., decided_position: _Optional[int] = ..., decided_at_us: _Optional[int] = ..., task_id: _Optional[str] = ..., adapter_ids: _Optional[_Iterable[str]] = ..., weights: _Optional[_Iterable[float]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., early: _Optional[int] = ..., first_seen_us: _Optional[int] = ..., context: _Optional[bytes] = ..., expected: _Optional[_Iterable[float]] = ..., user: _Optional[bytes] = ..., closeness: _Optional[_Union[_common_pb2.Closeness, _Mapping]] = ..., base_model: _Optional[str] = ..., on_trial: _Optional[_Mapping[str, _common_pb2.TrialSide]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("tenant", "success", "position", "reported_at_us", "score", "input", "output", "corrected_output", "right_adapter_id", "source", "revision", "withdrawn", "example_key", "stands", "stands_success", "stands_score")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REPORTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_KEY_FIELD_NUMBER: _ClassVar[int]
    STANDS_FIELD_NUMBER: _ClassVar[int]
    STANDS_SUCCESS_FIELD_NUMBER: _ClassVar[int]
    STANDS_SCORE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    success: bool
    position: int
    reported_at_us: int
    score: float
    input: str
    output: str
    corrected_output: str
    right_adapter_id: str
    source: str
    revision: int
    withdrawn: bool
    example_key: str
    stands: bool
    stands_success: bool
    stands_score: float
    def __init__(self, tenant: _Optional[str] = ..., success: _Optional[bool] = ..., position: _Optional[int] = ..., reported_at_us: _Optional[int] = ..., score: _Optional[float] = ..., input: _Optional[str] = ..., output: _Optional[str] = ..., corrected_output: _Optional[str] = ..., right_adapter_id: _Optional[str] = ..., source: _Optional[str] = ..., revision: _Optional[int] = ..., withdrawn: _Optional[bool] = ..., example_key: _Optional[str] = ..., stands: _Optional[bool] = ..., stands_success: _Optional[bool] = ..., stands_score: _Optional[float] = ...) -> None: ...

class AdapterCounts(_message.Message):
    __slots__ = ("tenants", "tasks", "together", "applied", "producers", "stood_for", "control", "draws", "pairs", "aside")
    class TenantsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tally
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...
    class TasksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tally
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...
    class TogetherEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class AppliedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ProducersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Producer
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Producer, _Mapping]] = ...) -> None: ...
    class StoodForEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tally
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...
    class ControlEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tally
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...
    class PairsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TrialPairs
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TrialPairs, _Mapping]] = ...) -> None: ...
    class AsideEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Span
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Span, _Mapping]] = ...) -> None: ...
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    PRODUCERS_FIELD_NUMBER: _ClassVar[int]
    STOOD_FOR_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    ASIDE_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.MessageMap[str, Tally]
    tasks: _containers.MessageMap[str, Tally]
    together: _containers.ScalarMap[str, int]
    applied: _containers.ScalarMap[str, int]
    producers: _containers.MessageMap[str, Producer]
    stood_for: _containers.MessageMap[str, Tally]
    control: _containers.MessageMap[str, Tally]
    draws: TrialDraws
    pairs: _containers.MessageMap[str, TrialPairs]
    aside: _containers.MessageMap[str, Span]
    def __init__(self, tenants: _Optional[_Mapping[str, Tally]] = ..., tasks: _Optional[_Mapping[str, Tally]] = ..., together: _Optional[_Mapping[str, int]] = ..., applied: _Optional[_Mapping[str, int]] = ..., producers: _Optional[_Mapping[str, Producer]] = ..., stood_for: _Optional[_Mapping[str, Tally]] = ..., control: _Optional[_Mapping[str, Tally]] = ..., draws: _Optional[_Union[TrialDraws, _Mapping]] = ..., pairs: _Optional[_Mapping[str, TrialPairs]] = ..., aside: _Optional[_Mapping[str, Span]] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("since_us", "until_us")
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    since_us: int
    until_us: int
    def __init__(self, since_us: _Optional[int] = ..., until_us: _Optional[int] = ...) -> None: ...

class TrialPairs(_message.Message):
    __slots__ = ("pairs", "child", "parent", "waiting_child", "waiting_child_sum", "waiting_parent", "waiting_parent_sum")
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    WAITING_CHILD_FIELD_NUMBER: _ClassVar[int]
    WAITING_CHILD_SUM_FIELD_NUMBER: _ClassVar[int]
    WAITING_PARENT_FIELD_NUMBER: _ClassVar[int]
    WAITING_PARENT_SUM_FIELD_NUMBER: _ClassVar[int]
    pairs: int
    child: float
    parent: float
    waiting_child: int
    waiting_child_sum: float
    waiting_parent: int
    waiting_parent_sum: float
    def __init__(self, pairs: _Optional[int] = ..., child: _Optional[float] = ..., parent: _Optional[float] = ..., waiting_child: _Optional[int] = ..., waiting_child_sum: _Optional[float] = ..., waiting_parent: _Optional[int] = ..., waiting_parent_sum: _Optional[float] = ...) -> None: ...

class TrialDraws(_message.Message):
    __slots__ = ("drawn", "child", "expected", "variance")
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_FIELD_NUMBER: _ClassVar[int]
    drawn: int
    child: int
    expected: float
    variance: float
    def __init__(self, drawn: _Optional[int] = ..., child: _Optional[int] = ..., expected: _Optional[float] = ..., variance: _Optional[float] = ...) -> None: ...

class CountsEpoch(_message.Message):
    __slots__ = ("epoch", "began_at_us", "began_at_offset")
    class BeganAtOffsetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_US_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    began_at_us: int
    began_at_offset: _containers.ScalarMap[str, int]
    def __init__(self, epoch: _Optional[str] = ..., began_at_us: _Optional[int] = ..., began_at_offset: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("uses", "outcomes", "successes", "generations", "tokens", "recent_uses", "recent_outcomes", "recent_successes", "recent_at_us", "fresh_outcomes", "fresh_successes", "last_used_at_us", "longest_gap_us", "aside_outcomes", "aside_successes", "verdicts", "first_token_us")
    USES_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECENT_USES_FIELD_NUMBER: _ClassVar[int]
    RECENT_OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    RECENT_SUCCESSES_FIELD_NUMBER: _ClassVar[int]
    RECENT_AT_US_FIELD_NUMBER: _ClassVar[int]
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
    fresh_outcomes: float
    fresh_successes: float
    last_used_at_us: int
    longest_gap_us: int
    aside_outcomes: int
    aside_successes: float
    verdicts: int
    first_token_us: int
    def __init__(self, uses: _Optional[int] = ..., outcomes: _Optional[int] = ..., successes: _Optional[float] = ..., generations: _Optional[int] = ..., tokens: _Optional[int] = ..., recent_uses: _Optional[float] = ..., recent_outcomes: _Optional[float] = ..., recent_successes: _Optional[float] = ..., recent_at_us: _Optional[int] = ..., fresh_outcomes: _Optional[float] = ..., fresh_successes: _Optional[float] = ..., last_used_at_us: _Optional[int] = ..., longest_gap_us: _Optional[int] = ..., aside_outcomes: _Optional[int] = ..., aside_successes: _Optional[float] = ..., verdicts: _Optional[int] = ..., first_token_us: _Optional[int] = ...) -> None: ...

class ExampleSet(_message.Message):
    __slots__ = ("examples",)
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    examples: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, examples: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Producer(_message.Message):
    __slots__ = ("sequence", "seen_at_us")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEEN_AT_US_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    seen_at_us: int
    def __init__(self, sequence: _Optional[int] = ..., seen_at_us: _Optional[int] = ...) -> None: ...
