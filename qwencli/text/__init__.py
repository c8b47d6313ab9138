"""Text at the edge: the tokenizer, chats, grammars."""
