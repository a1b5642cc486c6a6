"""What the executor is compared with: the linear layers alone, `transformers`, PEFT, and vLLM where `make bench-peers` has put it.

Every peer answers one question: seconds for `batch` greedy completions of `new_tokens` each, of prompts of PROMPT_TOKENS tokens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

PROMPT_TOKENS = 32
MODULES = ("q_proj", "v_proj")
VLLM_PYTHON = Path("build/peers/vllm/bin/python")


class Peer(Protocol):
    """Something that completes prompts."""

    def seconds(self, batch: int, new_tokens: int) -> float:
        """Time for one batch."""


class LinearFloor:
    """The base model's linear layers and nothing else, as plain `F.linear` calls: what a decode step cannot do without."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._weights = [module.weight.detach() for module in model.modules() if isinstance(module, torch.nn.Linear)]

    @torch.inference_mode()
    def seconds(self, batch: int, new_tokens: int) -> float:
        """See `Peer`; the prompt costs nothing here."""
        inputs = {weight.shape[1]: torch.randn(batch, weight.shape[1], dtype=weight.dtype) for weight in self._weights}
        began = time.perf_counter()
        for _ in range(new_tokens):
            for weight in self._weights:
                F.linear(inputs[weight.shape[1]], weight)
        return time.perf_counter() - began


class Transformers:
    """`generate` of transformers; with `rank`, PEFT's mixed batch: a different LoRA of that rank on every row."""

    def __init__(self, folder: Path, dtype: torch.dtype, rank: int = 0, adapters: int = 0) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._vocabulary = self._model.config.vocab_size
        self._names: list[str] = []
        if rank:
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(MODULES), init_lora_weights=False)
            self._model = get_peft_model(self._model, config, adapter_name="0")
            for number in range(1, adapters):
                self._model.add_adapter(str(number), config)
            self._names = [str(number) for number in range(adapters)]
        self._model.eval()

    @torch.inference_mode()
    def seconds(self, batch: int, new_tokens: int) -> float:
        """See `Peer`."""
        ids = torch.randint(5, self._vocabulary, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
        named = {"adapter_names": self._names[:batch]} if self._names else {}
        began = time.perf_counter()
        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **named,
        )
        return time.perf_counter() - began


class Vllm:
    """vLLM in its own environment and process, which waits while the others are measured."""

    def __init__(self, folder: Path, loras: Path, threads: int) -> None:
        settings = {
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        self._process = subprocess.Popen(
            [str(VLLM_PYTHON.absolute()), str(Path(__file__).with_name("vllm_peer.py")), str(folder), str(loras)],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # its workers outlive it, and must not outlive this
        )
        self.lora = False
        self._ask({"batch": 1, "new_tokens": 1, "lora": False})

    def seconds(self, batch: int, new_tokens: int) -> float:
        """See `Peer`; with `lora` set, one LoRA a row, each row another."""
        return self._ask({"batch": batch, "new_tokens": new_tokens, "lora": self.lora})

    def _ask(self, question: dict[str, object]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("SECONDS "):
                return float(line.split()[1])
        raise RuntimeError("vLLM ended; run `make bench-peers` again, or leave it out")

    def close(self) -> None:
        """End the process."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


def save_loras(folder: Path, out: Path, rank: int, count: int) -> None:
    """PEFT folders of random LoRAs for vLLM."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(MODULES), init_lora_weights=False),
    )
    for number in range(count):
        model.save_pretrained(str(out / str(number)))
