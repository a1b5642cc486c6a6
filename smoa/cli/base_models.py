"""The base model that an executor serves, and whether an adapter is of it."""

from __future__ import annotations

from dataclasses import dataclass

from smoa.adapter import Adapter
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.model_shape import ModelShape, may_be_same_model


@dataclass(frozen=True)
class BaseModel:
    """By its fingerprint, and what an executor says of it, where one was asked."""

    fingerprint: str
    name: str = ""
    shape: ModelShape | None = None

    def check(self, adapter: Adapter, *, any_name: bool = False) -> None:
        """Raise unless the adapter can be run on it; with `any_name`, whatever its owner calls the base model that it was trained on.

        Raises:
            InvalidArgument: a shape or size that does not fit, or another name.
        """
        if self.shape is not None:
            self.shape.check(adapter)
        trained_on = adapter.manifest.base_model_name
        if not any_name and not may_be_same_model(trained_on, self.name):
            raise InvalidArgument(
                "base_model_name_or_path",
                f"is {trained_on!r}, the executor serves {self.name!r}",
                "give --any-base if that is another name of the same weights",
            )


async def served_by(executor: str, timeout_s: float = 30.0) -> BaseModel:
    """What an executor says of its base model.

    Raises:
        grpc.aio.AioRpcError: it does not answer.
    """
    async with SmoaClient(executor=executor, timeout_s=timeout_s) as client:
        status = await client.status()
    shape = ModelShape.from_message(status.model) if status.HasField("model") else None
    return BaseModel(status.base_model, status.base_model_name, shape)
