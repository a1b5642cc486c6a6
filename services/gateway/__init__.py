"""The front door: HTTP as OpenAI's clients speak it, and an external processor for Envoy; behind both, the loop."""
