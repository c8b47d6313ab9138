"""Fetching models from the Hugging Face hub, into huggingface_hub's own cache, so that other programs find them too.

That library does everything but the download itself: its newer versions forget what was fetched when a download is interrupted, and no
version compares the SHA-256. Here the part is kept as `blobs/<etag>.incomplete`, as its older versions name it, and becomes a blob once its
hash is right; the library then links it into a snapshot. Only what 0.34 and 2.x both have is used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import QwenError
from .access import USUAL, Access
from .installed import installed, near
from .names import HubName, choose, models_among, names_of
from .places import hub_cache

BLOCK = 2**22
Progress = Callable[[int, int], Any]
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class RemoteFile(NamedTuple):
    """A file on the hub; `sha256` is None if it isn't stored as a large file."""

    path: str
    n_bytes: int | None
    sha256: str | None


class RemoteModel(NamedTuple):
    """A model on the hub, under the name that `-m` takes once it is here; it has several files if it is split."""

    name: str
    repo: str
    files: list[RemoteFile]

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes or 0 for file in self.files)


def look_up(name: HubName, first: bool = False, access: Access = USUAL) -> RemoteModel:
    """Ask the hub which files a name means; `first` as in names.choose.

    Raises QwenError if it isn't there or can't be reached, or if `access` forbids to ask.
    """
    if access.offline:
        raise QwenError(f"{name}: not on this machine, and nothing is fetched offline: see `qwencli list`")
    from huggingface_hub import HfApi

    with _errors(name.repo, access.token):
        info = HfApi(endpoint=endpoint(), token=access.token).model_info(name.repo, files_metadata=True)
        about = {
            file.rfilename: RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
            if ".." not in file.rfilename.split("/") and not re.search(r"^/|[\\:\0-\x1f\x7f]", file.rfilename)
        }
    models = models_among(about)
    chosen = choose(
        name,
        {first: sum(about[part].n_bytes or 0 for part in parts) for first, parts in models.items()},
        first,
    )
    return RemoteModel(
        names_of(name.repo, models)[chosen], name.repo, [about[part] for part in models[chosen]]
    )


def fetch(
    model: RemoteModel,
    begins: Callable[[str, int, int | None], Any],
    checked: Progress,
    token: str | None = None,
) -> Path:
    """Fetch what is missing of a model and return the path of its first file.

    `begins` is called with a missing file, how many of its bytes are here and how many it has; `checked` with how many bytes of how many
    have been hashed; `token` as in Access. Raises QwenError if the hub can't be reached, the disk is full or a hash is wrong. What was
    fetched is kept, and resumed the next time, except a file whose hash is wrong.
    """
    with _errors(model.repo, token):
        first, *_ = [_fetch_file(model.repo, file, begins, checked, token) for file in model.files]
    return first


def _fetch_file(
    repo: str,
    file: RemoteFile,
    begins: Callable[[str, int, int | None], Any],
    checked: Progress,
    token: str | None,
) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import WeakFileLock

    cache = hub_cache()
    url = hf_hub_url(repo, file.path, endpoint=endpoint())
    about = get_hf_file_metadata(url, token=token)
    etag = about.etag or ""
    folder = "models--" + repo.replace("/", "--")
    if not re.fullmatch(r"\w[\w.-]*", etag, re.ASCII):  # becomes the name of a file
        raise QwenError(
            f"{repo}: {endpoint()} gives no usable ETag for {file.path}, expected one of letters and digits"
        )
    blob = cache / folder / "blobs" / etag
    lock = cache / ".locks" / folder / f"{etag}.lock"
    if not isinstance(try_to_load_from_cache(repo, file.path, cache, about.commit_hash), str):
        for path in blob, lock:
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not blob.exists():
                partial = blob.with_name(f"{etag}.incomplete")
                n_bytes = about.size if about.size is not None else file.n_bytes
                begins(file.path, partial.stat().st_size if partial.exists() else 0, n_bytes)
                _download(url, partial, file.path, n_bytes, token)
                _check(partial, repo, file, checked)
                partial.replace(blob)
    path = Path(hf_hub_download(repo, file.path, cache_dir=cache, endpoint=endpoint(), token=token))
    if not path.is_symlink():  # without links the library has copied the blob
        blob.unlink(missing_ok=True)
    return path


def _download(url: str, partial: Path, shown: str, n_bytes: int | None, token: str | None) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with partial.open("ab") as f:
        if n_bytes is not None:
            if f.tell() > n_bytes:  # not a part of it
                f.seek(f.truncate(0))
            free = shutil.disk_usage(partial.parent).free
            if free < n_bytes - f.tell():
                raise QwenError(
                    f"{partial.parent}: {(n_bytes - f.tell()) / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
                )
        http_get(
            url,
            f,
            resume_size=f.tell(),
            headers=build_hf_headers(token=token),
            expected_size=n_bytes,
            displayed_filename=shown,
        )


def _check(partial: Path, repo: str, file: RemoteFile, checked: Progress) -> None:
    if file.sha256 is None:
        return
    digest, n_bytes = hashlib.sha256(), partial.stat().st_size
    with partial.open("rb") as f:
        while block := f.read(BLOCK):
            digest.update(block)
            checked(f.tell(), n_bytes)
    if digest.hexdigest() != file.sha256:
        partial.unlink()
        raise QwenError(
            f"{repo}: {file.path} arrived with the SHA-256 {digest.hexdigest()}, expected {file.sha256}: removed, try again"
        )


# -- What can go wrong --------------------------------------------------------------------------------------------------


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@contextmanager
def _errors(repo: str, token: str | None = None) -> Iterator[None]:
    """Turn whatever the library raises into one line. `token` is the one that was given, if any."""
    try:
        yield
    except QwenError:
        raise
    except Exception as error:
        # The hub, HTTP and Xet libraries raise many kinds; each becomes a line that says what to do.
        raise _explained(repo, error, token) from None


def _explained(repo: str, error: Any, token: str | None) -> Exception:
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.GatedRepoError):
        return QwenError(
            f"{repo}: its owner wants to know who fetches it: ask for access on {endpoint()}/{repo}, "
            "then set HF_TOKEN to your token or call `hf auth login`"
        )
    code = (
        error.response.status_code
        if isinstance(error, errors.HfHubHTTPError) and error.response is not None
        else 0
    )
    # Those without a token are told 401 for a repository that doesn't exist.
    if isinstance(error, errors.RepositoryNotFoundError) or (code == 401 and not (token or get_token())):
        return _not_found(repo)
    if code:
        whose = "the token that was given" if token else "the token in HF_TOKEN"
        why = {
            401: f"{whose} is not accepted",
            403: f"{whose} does not allow it",
            404: "not found",
            429: "too many requests, try again later",
        }.get(code, "try again later" if code >= 500 else "refused")
        return QwenError(f"{repo}: {endpoint()} answered with {code}: {why}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return QwenError(f"{repo}: not fetched: HF_HUB_OFFLINE is set")
    if getattr(error, "errno", None) in FULL:
        return QwenError(
            f"{hub_cache()}: the disk is full; what was fetched of {repo} is kept there and will be resumed"
        )
    if getattr(error, "errno", None) and getattr(error, "filename", None):
        return QwenError(f"{error.filename}: {error.strerror}")
    if isinstance(error, ValueError | LookupError | TypeError | AttributeError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return QwenError(f"{repo}: {endpoint()} does not answer like the hub: {_first_cause(error)}")
    return QwenError(f"{repo}: {endpoint()} cannot be reached or broke off: {_first_cause(error)}")


def _first_cause(error: BaseException) -> str:
    """The cause in the system's own words, which the libraries wrap several times."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__


def _not_found(repo: str) -> QwenError:
    """With similar names, of installed models and of what a search on the hub finds."""
    from huggingface_hub import HfApi

    owner, _, rest = repo.partition("/")
    known = [model.repo for model in installed() if model.repo]
    with suppress(Exception):  # whatever it is: there is an error to report already
        api = HfApi(endpoint=endpoint())
        known += [
            model.id for model in api.list_models(author=owner, search=rest[:4], filter="gguf", limit=100)
        ]
        known += [
            model.id
            for model in api.list_models(search=re.sub(r"(?i)-gguf$", "", rest), filter="gguf", limit=20)
        ]
    names = near(repo, known)
    suggestions = f"; similar names: {', '.join(names)}" if names else ""
    return QwenError(
        f"{repo}: no such repository on {endpoint()}, or a private one that needs HF_TOKEN{suggestions}"
    )
