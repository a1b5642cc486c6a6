"""Base models: their files, configuration, prompts and LoRA-XS bases."""
