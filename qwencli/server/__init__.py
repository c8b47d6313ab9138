"""`qwencli serve`: the model behind OpenAI's and llama.cpp's APIs."""
