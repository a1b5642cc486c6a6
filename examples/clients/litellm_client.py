"""LiteLLM through the base URL: adapters are models of an OpenAI-compatible provider. `pip install litellm`."""

from __future__ import annotations

import os
import sys

import litellm

QUESTION = "please refund the money for order 7"


def main(question: str) -> None:
    """Ask one question, routed, and of one adapter by its name if that is given first: `refunds: ...`."""
    name, separator, rest = question.partition(": ")
    model = f"openai/{name}" if separator else "openai/smoa-auto"
    answer = litellm.completion(
        model=model,
        api_base=os.environ.get("SMOA_GATEWAY_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("SMOA_KEY", "none"),
        messages=[{"role": "user", "content": rest if separator else question}],
        max_tokens=12,
    )
    print("answer:", answer.choices[0].message.content)
    print("tokens:", answer.usage.total_tokens)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
