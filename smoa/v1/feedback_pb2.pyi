from smoa.validate import validate_pb2 as _validate_pb2
from smoa.v1 import access_pb2 as _access_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(_message.Message):
    __slots__ = ("decision_id", "tenant", "success", "score", "reported_at_us", "input", "output", "corrected_output", "right_adapter_id", "source", "revision", "withdrawn")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REPORTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    tenant: str
    success: bool
    score: float
    reported_at_us: int
    input: str
    output: str
    corrected_output: str
    right_adapter_id: str
    source: str
    revision: int
    withdrawn: bool
    def __init__(self, decision_id: _Optional[str] = ..., tenant: _Optional[str] = ..., success: _Optional[bool] = ..., score: _Optional[float] = ..., reported_at_us: _Optional[int] = ..., input: _Optional[str] = ..., output: _Optional[str] = ..., corrected_output: _Optional[str] = ..., right_adapter_id: _Optional[str] = ..., source: _Optional[str] = ..., revision: _Optional[int] = ..., withdrawn: _Optional[bool] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    def __init__(self, outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
