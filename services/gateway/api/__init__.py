"""HTTP to requests and back, in OpenAI's forms."""
