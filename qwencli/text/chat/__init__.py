"""How conversations look as text: templates turn messages into prompts, answers are told apart into thinking, content and tool calls."""
