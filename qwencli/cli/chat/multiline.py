"""Messages of several lines."""
QUOTES = '"""'


def is_open(text: str) -> bool:
    '''Whether a message goes on in the next line: it ends with a backslash, or begins with """ that are not closed.'''
    if text.lstrip().startswith(QUOTES):
        inner = text.strip()[len(QUOTES):]
        return not inner.endswith(QUOTES)
    return text.endswith("\\")


def finished(text: str) -> str:
    '''The message without the """ around it.'''
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        return stripped[len(QUOTES):].removesuffix(QUOTES).strip("\n")
    return text
