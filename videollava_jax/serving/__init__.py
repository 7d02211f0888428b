"""A server with OpenAI's protocol around a session of the engine."""
