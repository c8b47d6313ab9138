"""The HTTP APIs of the server. Each is a folder, and its endpoints.py ends with the `API` (http/app.py) that is listed here."""

from .anthropic.endpoints import ANTHROPIC
from .llamacpp.endpoints import LLAMACPP
from .ollama.endpoints import OLLAMA
from .openai.endpoints import OPENAI
from .responses.endpoints import RESPONSES
from .vertex.endpoints import VERTEX

APIS = (OPENAI, LLAMACPP, OLLAMA, ANTHROPIC, RESPONSES, VERTEX)
