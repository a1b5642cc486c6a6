"""OpenAI's own Python client: ask, stream, and say whether the answer was right. `pip install openai`."""

from __future__ import annotations

import os
import sys

from openai import OpenAI

QUESTION = "please refund the money for order 7"


def main(question: str) -> None:
    """Ask one question."""
    client = OpenAI(base_url=os.environ.get("SMOA_GATEWAY_URL", "http://127.0.0.1:8080/v1"), api_key=os.environ.get("SMOA_KEY", "none"))
    answer = client.chat.completions.create(model="smoa-auto", messages=[{"role": "user", "content": question}], max_tokens=12)
    decision = (answer.model_extra or {})["smoa"]
    print("answer:", answer.choices[0].message.content)
    print("adapters:", ", ".join(f"{one['name']} {one['weight']:.2f}" for one in decision["adapters"]) or "none")

    print("streamed: ", end="")
    with client.chat.completions.create(
        model="smoa-auto",
        messages=[{"role": "user", "content": question}],
        max_tokens=12,
        stream=True,
        extra_body={"smoa": {"session": "s"}},
    ) as stream:
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    if decision["adapters"]:
        client.post("/feedback", cast_to=object, body={"id": answer.id, "success": True})
        print("reported")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
