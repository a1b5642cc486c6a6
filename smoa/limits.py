"""Bounds that the contracts state and more than one service checks."""

MAX_STAGES = 8
"""Stages of a pipeline."""
MAX_STAGE_ADAPTERS = 32
"""Adapters of one mixture."""
MAX_QUERY_CHARACTERS = 8192
"""Of a query, and of each turn before it."""
MAX_TURNS = 8
"""Of a conversation, before a query, that say what it is about: the last ones. Each costs as much as a query."""
MAX_ID_CHARACTERS = 64
"""Of an id that is passed through and not looked up."""
MAX_NAME_CHARACTERS = 256
"""Of an adapter's name, and of each of its tags."""
MAX_TAGS = 64
"""Tags of an adapter."""
MAX_MODULES = 64
"""Kinds of linear layer that an adapter changes."""
MAX_LAYERS = 4096
"""Of a model's decoder."""
MAX_RANK = 1024
"""Of an adapter's pairs, in a file; an executor serves up to a limit of its own."""
MAX_PARENTS = 64
"""Adapters that a merged one replaces."""
MIN_EXAMPLES, MAX_EXAMPLES = 5, 50
"""Example inputs of an adapter."""
MAX_EXAMPLE_CHARACTERS = 8192
"""Of each of them, and of each text that an outcome gives as an example."""
MAX_VERSION = 2**31 - 1
"""Versions travel as 32 bits."""
UPLOAD_PART_BYTES = 2**20
"""Of an adapter's file, in one message."""
SLOWEST_BYTES_PER_S = 1e6
"""Of an adapter's file, on its way to a router or from it; a slower one is not waited for."""
MAX_WEIGHT = 4.0
"""Most that an adapter's weight may be, either way."""
MAX_MESSAGES = 1024
"""Turns of a conversation."""
MAX_STOPS, MAX_STOP_CHARACTERS = 8, 64
"""Texts that end an answer, and characters of each."""
MAX_LOGIT_BIASES, MAX_LOGIT_BIAS = 1024, 100.0
"""Tokens that a request prefers or avoids, and by how much."""
MAX_ANSWERS = 8
"""To one request."""
MAX_LOGPROBS = 20
"""Alternatives to a token whose log-probabilities are told."""
AS_MANY_TOKENS = -1
"""In place of the most tokens of an answer: as many as the executor's limit and the context leave."""
