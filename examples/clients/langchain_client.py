"""LangChain through the base URL: `smoa-auto` is a chat model like any other. `pip install langchain-openai`."""

from __future__ import annotations

import os
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

QUESTION = "please refund the money for order 7"


def main(question: str) -> None:
    """Ask one question through a chain, whole and streamed."""
    model = ChatOpenAI(
        model="smoa-auto",
        base_url=os.environ.get("SMOA_GATEWAY_URL", "http://127.0.0.1:8080/v1"),
        api_key=SecretStr(os.environ.get("SMOA_KEY", "none")),
        max_completion_tokens=12,
        extra_body={"smoa": {"tags": ["support"]}},
    )
    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | model | StrOutputParser()
    print("answer:", chain.invoke({"question": question}))
    print("streamed:", "".join(chain.stream({"question": question})))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or QUESTION)
