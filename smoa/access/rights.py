"""The rights that `proto/` states, and requests held to them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from smoa.access.principal import Principal, role_name
from smoa.errors import PermissionDenied
from smoa.v1 import access_pb2

Path = tuple[FieldDescriptor, ...]


@dataclass(frozen=True)
class Rights:
    """Of a method: who may call it, which fields name tenants, and which ask for more."""

    method: str
    roles: frozenset[str]
    tenants: tuple[Path, ...]
    needs: tuple[tuple[Path, frozenset[str]], ...]
    audited: bool = False
    many: tuple[Path, ...] = ()
    """Fields of which each item counts as a call."""

    def counted(self, request: Message) -> int:
        """How many such items a request has."""
        return sum(len(getattr(message, path[-1].name)) for path in self.many for message, _ in _messages(request, path))

    def check_call(self, principal: Principal) -> None:
        """Refuse who may not call it.

        Raises:
            PermissionDenied: they have none of its roles.
        """
        principal.require(self.roles, self.method)

    def check_request(self, principal: Principal, request: Message) -> None:
        """Refuse another's tenant and fields that are not theirs to give; an empty tenant becomes the caller's.

        Raises:
            PermissionDenied: naming the field.
            InvalidArgument: it does not say which of several tenants is meant.
        """
        for path in self.tenants:
            for message, where in _messages(request, path):
                asked = getattr(message, path[-1].name)
                meant = principal.tenant(asked, where)
                if meant != asked:
                    setattr(message, path[-1].name, meant)
        for path, roles in self.needs:
            if not principal.may(roles):
                for message, where in _messages(request, path):
                    if _given(message, path[-1]):
                        principal.require(roles, where)


@cache
def rights_of(method: str) -> Rights:
    """Of a method, as `/smoa.v1.RouterService/Route`.

    Raises:
        PermissionDenied: the contract gives it to nobody.
    """
    service, _, name = method.lstrip("/").partition("/")
    described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    roles = frozenset(map(role_name, _option(described, access_pb2.roles)))
    if not roles:
        raise PermissionDenied(f"{method}: proto/ says of no role that it may call it; state (roles) beside it")
    fields = list(_fields(described.input_type, ()))
    needs = [(path, frozenset(map(role_name, _option(path[-1], access_pb2.needs)))) for path in fields]
    return Rights(
        name,
        roles,
        tuple(path for path in fields if _option(path[-1], access_pb2.names_tenant)),
        tuple((path, wanted) for path, wanted in needs if wanted),
        bool(_option(described, access_pb2.audited)),
        tuple(path for path in fields if _option(path[-1], access_pb2.counts_each)),
    )


def _option(described: Any, option: Any) -> Any:
    return described.GetOptions().Extensions[option]


_DEEPEST: Final = 4
"""Messages in messages; trees nest for ever."""


def _fields(message: Descriptor, above: Path) -> Iterator[Path]:
    for field in message.fields:
        yield (*above, field)
        if field.message_type is not None and not field.message_type.GetOptions().map_entry and len(above) < _DEEPEST:
            yield from _fields(field.message_type, (*above, field))


def _messages(request: Message, path: Path) -> list[tuple[Message, str]]:
    """Those that hold the last field of a path, and how the field is called in each."""
    found = [(request, "")]
    for field in path[:-1]:
        inner = list[tuple[Message, str]]()
        for message, where in found:
            if field.is_repeated:
                inner += [(one, f"{where}{field.name}[{place}].") for place, one in enumerate(getattr(message, field.name))]
            elif message.HasField(field.name):
                inner.append((getattr(message, field.name), f"{where}{field.name}."))
        found = inner
    return [(message, where + path[-1].name) for message, where in found]


def _given(message: Message, field: FieldDescriptor) -> bool:
    if field.has_presence:
        return message.HasField(field.name)
    return bool(getattr(message, field.name))
