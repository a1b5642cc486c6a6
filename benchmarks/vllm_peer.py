"""Runs inside vLLM's own environment: reads questions as JSON lines, answers `SECONDS x`. See `peers.Vllm`."""

# ruff: noqa: D103
import json
import random
import sys
import time
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folder, loras = sys.argv[1], sorted(Path(sys.argv[2]).iterdir(), key=lambda path: int(path.name))
    options = {"model": folder, "dtype": "bfloat16", "max_model_len": 256, "max_num_seqs": 32, "enable_prefix_caching": False}
    engines = {}
    for line in sys.stdin:
        question = json.loads(line)
        if question["lora"] not in engines:
            # The plain engine has no LoRA support compiled in: what vLLM users without adapters run.
            extra = {"enable_lora": True, "max_loras": 32, "max_lora_rank": 8} if question["lora"] else {}
            engines[question["lora"]] = LLM(**options, **extra)
        rng = random.Random(0)
        prompts = [{"prompt_token_ids": [rng.randrange(5, 49000) for _ in range(32)]} for _ in range(question["batch"])]
        sampling = SamplingParams(temperature=0, max_tokens=question["new_tokens"], ignore_eos=True)
        requests = None
        if question["lora"]:
            requests = [LoRARequest(path.name, int(path.name) + 1, str(path)) for path in loras[: question["batch"]]]
        began = time.perf_counter()
        engines[question["lora"]].generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        print(f"SECONDS {time.perf_counter() - began}", flush=True)


if __name__ == "__main__":
    main()
