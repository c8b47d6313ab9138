"""Names of models on the hub: which GGUF file of a repository `user/repo:Q4_K_M` means. Nothing is fetched here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..errors import InputError
from ..gguf.file import SPLIT_NAME

DEFAULT_TAG = "Q4_K_M"
NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<tag>[\w.-]+)|/(?P<file>[^:\\]+\.gguf))?", re.ASCII)
QUANT = re.compile(
    r"(?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|B?F16|FP16|F32|FP32|MXFP4(?:_MOE)?|NVFP4)(?![A-Z0-9])",
    re.IGNORECASE,
)
NO_MODEL = re.compile(r"(?i:mmproj|imatrix)|mtp-|eagle3-|dflash-|dspark-")
"""Parts of the names of files that accompany a model and aren't one: those that llama.cpp leaves out. In small letters they name drafts;
"MTP" in a model's name says that the model predicts several tokens at once."""


class HubName(NamedTuple):
    """`user/repo`, with the tag of a quantization or a file in the repository, or neither."""

    repo: str
    tag: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """What `user/repo`, `user/repo:tag` or `user/repo/file.gguf` means; None for any other text."""
        match = NAME.fullmatch(text)
        return cls(match["repo"], match["tag"], match["file"]) if match and ".." not in text else None

    def __str__(self) -> str:
        return self.repo + (f":{self.tag}" if self.tag else f"/{self.file}" if self.file else "")


def models_among(files: Iterable[str]) -> dict[str, list[str]]:
    """The models among a repository's files: the first file of each, and all its files. Split models that lack a part are left out."""
    known = set(files)
    models = {}
    for file in sorted(known):
        if not file.endswith(".gguf") or NO_MODEL.search(file.rpartition("/")[2]):
            continue
        split = SPLIT_NAME.fullmatch(file)
        if not split:
            models[file] = [file]
        elif int(split["number"]) == 1:
            parts = [
                f"{split['stem']}-{i + 1:05}-of-{split['count']}.gguf" for i in range(int(split["count"]))
            ]
            if known.issuperset(parts):
                models[file] = parts
    return models


def tag_of(file: str) -> str | None:
    """The quantization at the end of a file's name, or else of its folder's, in capitals: Q4_K_M, IQ4_XS, UD-Q4_K_XL, BF16 ..."""
    for part in reversed(_stem(file).split("/")):
        found = [
            match[0]
            for match in QUANT.finditer(part)
            if not part[match.start() - 1 : match.start()].isalnum()
        ]
        if found:
            return found[-1].upper()
    return None


def names_of(repo: str, models: Iterable[str]) -> dict[str, str]:
    """A name for each model: with its tag, or with its file if it has no tag or shares it."""
    tags = {file: tag_of(file) for file in models}
    count = Counter(tags.values())
    return {
        file: str(HubName(repo, tag) if tag and count[tag] == 1 else HubName(repo, None, file))
        for file, tag in tags.items()
    }


def choose(name: HubName, sizes: Mapping[str, int | None], first: bool = False) -> str:
    """The model that is meant, among those with the given sizes in bytes. Raises InputError, which lists them, if none or several are.

    Without a tag, Q4_K_M is meant, or the only model there is. With `first`, as in llama.cpp: or else Q8_0, or else the first model; and
    the first of several that match a tag.
    """
    if name.file:
        found = [file for file in sizes if file.lower() == name.file.lower()]
    else:
        for tag in [name.tag] if name.tag else [DEFAULT_TAG, "Q8_0"] if first else [DEFAULT_TAG]:
            found = [file for file in sizes if tag_of(file) == tag.upper()] or [
                file for file in sizes if _says(file, tag)
            ]
            if found:
                break
        if not found and not name.tag and (first or len(sizes) == 1):
            found = list(sizes)
    if len(found) == 1 or (found and first):
        return found[0]
    if not sizes:
        raise InputError(f"{name.repo} holds no GGUF models")
    names = names_of(name.repo, sizes)
    shown = [
        names[file].removeprefix(f"{name.repo}:") + (f" ({size / 1e6:,.0f} MB)" if size else "")
        for file, size in sizes.items()
    ]
    wanted = name.file or name.tag or DEFAULT_TAG
    what = f"{len(found)} models that are {wanted}" if found else f"no {wanted}"
    raise InputError(f"{name.repo} holds {what}, choose one with {name.repo}:TAG: {', '.join(shown)}")


def _stem(file: str) -> str:
    split = SPLIT_NAME.fullmatch(file)
    return split["stem"] if split else file.removesuffix(".gguf")


def _says(file: str, tag: str) -> bool:
    """Whether the tag is in the file's path as a word."""
    return re.search(rf"(?<![A-Z0-9_]){re.escape(tag)}(?![A-Z0-9_])", _stem(file), re.IGNORECASE) is not None
