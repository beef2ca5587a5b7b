"""The server: OpenAI's API and the tasks over HTTP. Needs the extra ``serve``."""
