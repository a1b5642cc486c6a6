"""What every embedder keeps to: the table of words, a model in ONNX, a service behind HTTP."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from smoa.embedding.choose import open_embedder
from smoa.embedding.port import Embedder
from smoa.embedding.static import StaticEmbedder
from smoa.errors import FailedPrecondition, InvalidArgument, Unavailable

WORDS = [
    *["my", "knee", "hurts", "when", "climbing", "stairs", "please", "refund", "the", "order"],
    *["money", "back", "hotel", "room", "was", "loud", "query", ":"],
]
STATIC = StaticEmbedder()


def _tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return made


class Attention(torch.nn.Module):
    """One layer in which every token looks at all that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(len(WORDS) + 4, 32), torch.nn.Embedding(24, 32)
        self.query, self.key, self.value, self.out = (torch.nn.Linear(32, 32) for _ in range(4))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[n, tokens] to [n, tokens, 32]."""
        tokens = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) / 32**0.5 + (attention_mask[:, None] - 1) * 1e4
        out: torch.Tensor = torch.tanh(self.out(tokens + torch.softmax(scores, -1) @ self.value(tokens)))
        return out


class Model:
    """A small model with random weights, saved as sentence-transformers saves one."""

    def __init__(self, folder: Path, **said: Any) -> None:
        torch.manual_seed(3)
        self.folder, self.tokenizer, self.model = folder, _tokenizer(), Attention().eval()
        (folder / "onnx").mkdir(parents=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        example = torch.ones((2, 5), dtype=torch.long)
        names = ["input_ids", "attention_mask", "last_hidden_state"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter: the newer one needs a package more
            torch.onnx.export(
                self.model,
                (example, example),
                str(folder / "onnx" / "model.onnx"),
                input_names=names[:2],
                output_names=names[2:],
                dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
                dynamo=False,
            )
        self.write("config.json", {"max_position_embeddings": 24})
        kinds = ("Transformer", "Pooling", "Normalize")
        self.write(
            "modules.json",
            [
                {"idx": n, "path": "" if not n else f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"}
                for n, kind in enumerate(kinds)
            ],
        )
        self.write("sentence_bert_config.json", {"max_seq_length": 16})
        for name, body in said.items():
            self.write(
                {"pooling": "1_Pooling/config.json", "prompts": "config_sentence_transformers.json", "modules": "modules.json"}[name], body
            )

    def write(self, name: str, body: object) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(json.dumps(body))

    def hidden(self, text: str) -> torch.Tensor:
        """[tokens, 32] of a text by itself."""
        ids = self.tokenizer.encode(text).ids
        if len(ids) > 16:
            ids = [*ids[:15], 3]
        with torch.no_grad():
            hidden: torch.Tensor = self.model(torch.tensor([ids]), torch.ones((1, len(ids))))[0]
        return hidden


class Service:
    """A service with OpenAI's /v1/embeddings over HTTP, which has the table of words behind it."""

    def __init__(self) -> None:
        self.status, self.body, self.keys, self.asked = 200, b"", list[str | None](), list[dict[str, Any]]()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.asked.append(asked)
                service.keys.append(self.headers.get("Authorization"))
                rows = [
                    {"object": "embedding", "index": n, "embedding": (3 * STATIC.vector_of(text)).tolist()}
                    for n, text in enumerate(asked["input"])
                ]
                body = service.body or json.dumps({"object": "list", "model": asked["model"], "data": rows[::-1]}).encode()
                self.send_response(service.status if self.path == "/v1/embeddings" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"), pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})


@pytest.fixture(params=["wordllama", "onnx", "service"])
async def embedder(request: pytest.FixtureRequest, saved: Model, service: Service) -> AsyncIterator[Embedder]:
    where = {"wordllama": "wordllama", "onnx": str(saved.folder), "service": service.url}[request.param]
    made = await open_embedder(where, "words" if request.param == "service" else "", "secret")
    yield made
    await made.close()


async def test_texts_become_unit_vectors_each_by_itself(embedder: Embedder) -> None:
    texts = [
        "my knee hurts",
        "please refund the order",
        "my knee hurts when climbing stairs",
        *(f"hotel {word}" for word in WORDS),
        "my knee hurts",
    ]
    vectors = await embedder.embed(texts * 5)
    assert vectors.shape == (5 * len(texts), embedder.dimension)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] == pytest.approx(vectors[len(texts) - 1], abs=1e-6)
    for place in (0, 1, 2, 7):
        assert (await embedder.embed([texts[place]]))[0] == pytest.approx(vectors[place], abs=1e-5), "whatever it is embedded beside"
    assert embedder.name
    assert (await embedder.embed(["knee " * 2000])).shape == (1, embedder.dimension), "a long one, too"


async def test_two_of_the_same_have_one_name(embedder: Embedder, saved: Model, service: Service) -> None:
    again = [await open_embedder("wordllama"), await open_embedder(str(saved.folder)), await open_embedder(service.url, "words")]
    assert [one.name for one in again].count(embedder.name) == 1
    for one in again:
        await one.close()


@pytest.mark.parametrize(
    ("said", "pooled"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda hidden: hidden.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda hidden: hidden[0]),
        ({"pooling_mode_max_tokens": True}, lambda hidden: hidden.max(0).values),
        ({"pooling_mode_lasttoken": True}, lambda hidden: hidden[-1]),
    ],
)
async def test_tokens_are_pooled_as_the_folder_says(tmp_path: Path, said: dict[str, bool], pooled: Any) -> None:
    """Against the same model in torch, each text by itself."""
    prompts = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    model = Model(tmp_path / "model", pooling=said, prompts=prompts)
    made = await open_embedder(str(model.folder))
    texts = ["my knee hurts", "please refund the order money back", "loud " * 40]
    for text, vector in zip(texts, await made.embed(texts), strict=True):
        wanted = pooled(model.hidden(f"query: {text}"))
        assert vector == pytest.approx((wanted / wanted.norm()).numpy(), abs=2e-5)
    other = await open_embedder(str(model.folder), prompt="hotel ")
    assert other.name != made.name, "vectors of another prompt are not to be compared"
    await made.close()
    await other.close()


async def test_a_folder_that_cannot_be_used_is_refused_by_what_is_wrong(tmp_path: Path, saved: Model) -> None:
    (tmp_path / "empty").mkdir()
    dense = Model(tmp_path / "dense", modules=[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}])
    odd = Model(tmp_path / "odd", pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})
    for folder, message in (
        (tmp_path / "empty", "holds no onnx/model.onnx with a tokenizer.json; save it with"),
        (dense.folder, "has a module 'Dense', which is not known here"),
        (odd.folder, "pools by pooling_mode_mean_tokens, pooling_mode_cls_token; take a model with one of"),
    ):
        with pytest.raises(FailedPrecondition, match=message):
            await open_embedder(str(folder))
    with pytest.raises(InvalidArgument, match=r"^embedder: '/nowhere' is no folder; name wordllama, a folder"):
        await open_embedder("/nowhere")


async def test_a_service_is_asked_as_openai_is(service: Service) -> None:
    made = await open_embedder(f"{service.url}/v1", "words", "secret", "query: ")
    vector = (await made.embed(["my knee hurts"]))[0]
    assert vector == pytest.approx(STATIC.vector_of("query: my knee hurts"), abs=1e-6)
    assert service.asked[-1] == {"model": "words", "input": ["query: my knee hurts"], "encoding_format": "float"}
    assert set(service.keys) == {"Bearer secret"}
    assert made.name == "words query:"
    for status, body, kind, message in (
        (429, b"slow down", Unavailable, r"answered 429 \(slow down\)"),
        (400, b"too long", InvalidArgument, r"^query: is not taken by the embedder \(400: too long\)"),
        (200, b"[]", Unavailable, "does not answer as OpenAI's API does"),
        (200, b'{"data": [{"index": 0, "embedding": [1, 2]}]}', Unavailable, "does not answer as OpenAI's API does"),
        (200, b'{"data": [{"index": 0, "embedding": [NaN]}]}', Unavailable, "does not answer as OpenAI's API does"),
    ):
        service.status, service.body = status, body
        with pytest.raises(kind, match=message):
            await made.embed(["my knee hurts"])
    await made.close()
    with pytest.raises(InvalidArgument, match=r"^embedder_model: is empty"):
        await open_embedder(service.url)
    with pytest.raises(Unavailable, match="does not answer as OpenAI's API does"):
        await open_embedder(service.url, "words")
    with pytest.raises(Unavailable, match="does not answer"):
        await open_embedder("http://127.0.0.1:1", "words")
