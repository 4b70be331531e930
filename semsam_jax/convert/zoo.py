"""Models by name: released files that are downloaded and converted, and Hugging Face repositories.

    swin_t, swin_l            the original's release files
    hf://OWNER/NAME[@rev]     a repository with model.safetensors and config.json

Downloads are kept in the cache (`SEMSAM_JAX_CACHE`).
"""

import dataclasses
import difflib
import os
import re
import shutil
from pathlib import Path

from semsam_jax.core import checkpoint_io, model_files
from semsam_jax.core.errors import CheckpointError

_RELEASES = "https://github.com/UX-Decoder/Semantic-SAM/releases/download/checkpoint"
_HUB_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)")
_WORD = re.compile(r"[\w-]+")
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class Release:
    """A published file of weights.

    Attributes:
        url: where it is.
        sha256: its hash, None if unpublished.
        size: in bytes, None if unknown.
        licence: stated by its authors.
    """

    url: str
    sha256: str | None = None
    size: int | None = None
    licence: str = "their authors state no licence for the weights"


RELEASES = {
    "swin_t": Release(f"{_RELEASES}/swint_only_sam_many2many.pth"),
    "swin_l": Release(
        f"{_RELEASES}/swinl_only_sam_many2many.pth",
        sha256="f85bee1faa64154831a75598048d133e345874dbd7ef87d00b6446c1ae772956",
    ),
}
LITE = "lite"
"""The model that comes with the package."""


def resolve(name: str | os.PathLike | None) -> str | os.PathLike | None:
    """The folder of a model that is given by name; anything else is returned unchanged.

    A folder or file of that name in the working directory takes precedence.

    Raises:
        CheckpointError: it cannot be downloaded, converted or stored, or is no known name.
    """
    if not isinstance(name, str) or os.path.exists(name):
        return name
    if name == LITE:
        return checkpoint_io.SHIPPED
    if name in RELEASES:
        return fetch_release(name, RELEASES[name])
    if name.startswith("hf:"):
        return fetch_repository(name)
    if name.startswith(("https://", "http://")):
        page = _HUB_PAGE.match(name)
        wanted = f"hf://{page[1]}" if page else "the path of the file, once it is downloaded"
        raise CheckpointError(f"checkpoint {name[:200]}: a web address; expected {wanted}.")
    if _WORD.fullmatch(name) and name != checkpoint_io.LAST_RUN:
        known = [LITE, *RELEASES]
        near = difflib.get_close_matches(re.sub(r"\W", "_", name.lower()), known, 1, 0.7)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise CheckpointError(
            f"checkpoint {name[:200]}: no such file or folder, and not the name of a model "
            f"(known: {', '.join(known)}, hf://OWNER/NAME){hint}"
        )
    return name


def fetch_release(name: str, release: Release) -> Path:
    """Downloads and converts a released file, once; returns the folder of the model."""
    root = checkpoint_io.cache_dir() / "models"
    folder = root / name
    if model_files.has_model(folder):
        return folder
    from semsam_jax.convert.download import download
    from semsam_jax.convert.released import read_released

    file = root / release.url.rpartition("/")[2]
    print(f"{name}: {release.url} ({release.licence})", flush=True)
    digest = download(release.url, file, sha256=release.sha256, size=release.size)
    found = read_released([file])
    about = {"source": release.url, "source_sha256": digest, "licence": release.licence}
    try:
        model_files.save_model(folder, found.params, found.meta | about)
    except CheckpointError:
        if not model_files.has_model(folder):  # else another process has done it
            raise
    file.unlink(missing_ok=True)
    return folder


def fetch_repository(name: str) -> Path:
    """Downloads `hf://OWNER/NAME[@rev]`, once; returns the folder of the model."""
    found = _HUB.fullmatch(name)
    if found is None:
        raise CheckpointError(
            f"checkpoint {name}: expected hf://OWNER/NAME or hf://OWNER/NAME@REV."
        )
    repository, revision = found.groups()
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {name}: huggingface_hub is not installed; run "
            f"`pip install 'semsam-jax[hub]'`."
        ) from error
    about = {
        "revision": revision,
        "cache_dir": checkpoint_io.cache_dir() / "hub",
        "endpoint": os.environ.get("HF_ENDPOINT"),
        "library_name": "semsam-jax",
    }
    try:
        files = [
            Path(hf_hub_download(repository, file, **about))
            for file in (model_files.CONFIG, model_files.WEIGHTS)
        ]
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"checkpoint {name}: cannot be downloaded and is not in the cache ({_first(error)}); "
            f"check the connection, or download {model_files.CONFIG} and {model_files.WEIGHTS} of "
            f"https://huggingface.co/{repository} into a folder and give that folder."
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"checkpoint {name}: {_first(error)}; the repository must hold {model_files.CONFIG} "
            f"and {model_files.WEIGHTS}. A private one needs `hf auth login` or HF_TOKEN."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {name}: {_first(error)}.") from error
    model_files.read_config(files[0].parent)  # files of other projects are refused here
    return files[0].parent


def push(folder: str | os.PathLike, name: str, *, licence: str, private: bool = False) -> str:
    """Writes a model to a Hugging Face repository; returns its address.

    Args:
        folder: a model or a training run.
        name: `hf://OWNER/NAME`; made if it does not exist.
        licence: identifier of the weights' licence, such as `apache-2.0`.
        private: whether a new repository is private.

    Raises:
        CheckpointError: no model in the folder, no right to write, or no connection.
    """
    found = _HUB.fullmatch(name)
    if found is None or found.group(2):
        raise CheckpointError(f"push: got {name!r}; expected hf://OWNER/NAME.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,40}", licence):
        raise CheckpointError(f"push: licence {licence!r}; expected an identifier like apache-2.0.")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise CheckpointError(
            "push: huggingface_hub is not installed; run `pip install 'semsam-jax[hub]'`."
        ) from error
    import tempfile

    from semsam_jax.convert.card import model_card

    params, meta = checkpoint_io.read_model(folder)
    repository, api = (
        found.group(1),
        HfApi(os.environ.get("HF_ENDPOINT"), library_name="semsam-jax"),
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = model_files.save_model(Path(temporary) / "model", params, meta)
        (root / "README.md").write_text(model_card(repository, meta, licence), encoding="utf-8")
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repository, folder_path=root)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise CheckpointError(
                f"push {name}: {_first(error)}; a token with write access is needed "
                f"(`hf auth login` or HF_TOKEN)."
            ) from error
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return str(getattr(done, "commit_url", done))


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
