"""``dslight push``: an export, or a run, uploaded to the Hub, into the repository that is named, by huggingface_hub.

Decided here: nothing goes anywhere before its list was printed; a repository that is made is private, and one that
anybody can read takes nothing unless that was said; weights that an earlier upload left there and that are no part of
this one go, since a program that opens the repository would read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from dslight.files.system import megabytes
from dslight.recipe.compose import to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.folder import RunFolder
from dslight.run.processes import is_first
from dslight.texts import readable
from dslight.upstream.hub import stay_offline_without_network

_REPOSITORY = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_CARD, _RECIPE = "README.md", "dslight.yaml"


def check_repository(repository: str, key: str) -> None:
    """Raise unless this is the name of a repository.

    Raises:
        RecipeError: naming ``key``.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise RecipeError(f"{key}: {repository!r} is no repository of the Hub; OWNER/NAME is, e.g. my-group/my-model")


def check_hub(repository: str, key: str) -> None:
    """Raise where nothing could be uploaded from here, as far as can be told without asking anybody.

    Raises:
        RecipeError: naming ``key``.
    """
    from huggingface_hub import constants, get_token

    check_repository(repository, key)
    why = stay_offline_without_network()
    if why is not None or constants.is_offline_mode():
        why = why or "this environment is offline (HF_HUB_OFFLINE)"
        raise RecipeError(f"{key}: nothing can be uploaded to {repository}: {why}")
    if get_token() is None:
        raise RecipeError(f"{key}: {repository} takes uploads of those who are known; `hf auth login`, or set HF_TOKEN")


def push(
    source: Path,
    repository: str,
    public: bool = False,
    only_list: bool = False,
    message: str | None = None,
    key: str = "REPOSITORY",
) -> str:
    """Upload a folder that ``dslight export`` wrote, or a run, which is exported first.

    Args:
        source: a run's folder, or an export.
        repository: ``OWNER/NAME``; made, private, where there is none.
        public: a new repository may be read by anybody; one that anybody can read is uploaded to.
        only_list: print what would be uploaded, and ask nobody.
        message: of the commit.
        key: what errors name the repository by.

    Returns:
        The address of the commit; of ``only_list`` an empty text.

    Raises:
        RecipeError: nothing was uploaded.
    """
    (check_repository if only_list else check_hub)(repository, key)
    run = RunFolder(source)
    if not run.recipe_file.exists():
        return _push(source, repository, public, only_list, message or "Upload of dslight push", key)
    from dslight.run.export import export

    with TemporaryDirectory(prefix="dslight-push-") as folder:
        out = Path(folder) / repository.partition("/")[2]
        export(source, out)
        return _push(out, repository, public, only_list, message or f"Upload of the run {source.resolve().name}", key)


def push_at_the_end(run: Path, repository: str) -> None:
    """Upload a finished run, where several processes trained it, by the first of them.

    Raises:
        RecipeError: the run stays finished, and the same command tries again.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()  # reading a sharded checkpoint would wait for the others
    if is_first():
        push(run, repository, message=f"Upload of the run {run.name}", key="hub_push")


def _push(folder: Path, repository: str, public: bool, only_list: bool, message: str, key: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    files = _files(folder)
    changed = _renamed(folder, repository)
    sizes = [len(changed[name].encode()) if name in changed else (folder / name).stat().st_size for name in files]
    print(f"{repository}: {len(files)} files, {megabytes(sum(sizes))}")
    for name, size in zip(files, sizes, strict=True):
        named = f", opened as {repository}" if name in changed else ""
        print(f"    {readable(name)}  {megabytes(size)}{named}")
    if only_list:
        return ""
    api = HfApi(library_name="dslight")
    with _refused(repository, key):
        try:
            there = api.model_info(repository)
        except RepositoryNotFoundError:
            there = None
        if there is not None and not there.private and not public:
            raise RecipeError(f"{key}: {repository} can be read by anybody; say so: dslight push ... --public")
        if there is None:
            api.create_repo(repository, private=not public)
            print(f"{repository}: made, {'public' if public else 'private'}")
        stale = [one.rfilename for one in (there.siblings or [])] if there is not None else []
        stale = sorted(name for name in stale if _WEIGHTS.fullmatch(name) and name not in files)
        if stale:
            print(f"{repository}: weights of an earlier upload go: {', '.join(stale)}")
        done: Any = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, _content(folder / name, changed.get(name))) for name in files),
                *map(CommitOperationDelete, stale),
            ],
            commit_message=message,
        )
    print(f"{repository}: uploaded, {done.commit_url}")
    return str(done.commit_url)


def _files(folder: Path) -> list[str]:
    """The files of an export."""
    if not (folder / "config.json").is_file() or not (folder / _RECIPE).is_file():
        raise RecipeError(
            f"SOURCE: {folder} is neither a run's folder (no recipe.yaml) nor an export (no config.json and {_RECIPE})"
        )
    found = sorted(path for path in folder.rglob("*") if not path.is_dir())
    for path in found:
        if path.is_symlink():
            raise RecipeError(f"SOURCE: {path} is a symbolic link; what it leads to is not uploaded, so remove it")
    names = [path.relative_to(folder).as_posix() for path in found]
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def _renamed(folder: Path, repository: str) -> dict[str, str]:
    """The card and the recipe, with the repository in place of the folder that they were written to."""
    with (folder / _RECIPE).open(encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    where = ((recipe or {}).get("weights") or {}).get("model") if isinstance(recipe, Mapping) else None
    if not isinstance(where, str):
        return {}
    name = repository.partition("/")[2]
    made = {_RECIPE: to_yaml(_with(recipe, where, name))}
    if (folder / _CARD).is_file():
        card = (folder / _CARD).read_text(encoding="utf-8")
        card = card.replace(f'from_pretrained("{where}"', f'from_pretrained("{repository}"')
        card = card.replace(
            f"dslight predict {where}/dslight.yaml --ckpt {where} ",
            f"dslight predict {name}/dslight.yaml --ckpt {name} ",
        )
        made[_CARD] = card.replace(
            "```bash\ndslight predict", f"```bash\nhf download {repository} --local-dir {name}\ndslight predict"
        )
    return made


def _with(node: Any, old: str, new: str) -> Any:
    if isinstance(node, Mapping):
        return {key: _with(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_with(value, old, new) for value in node]
    return new if node == old else node


def _content(path: Path, changed: str | None) -> Path | bytes:
    return path if changed is None else changed.encode()


@contextmanager
def _refused(repository: str, key: str) -> Iterator[None]:
    """What the Hub, or the way to it, says against an upload, in a sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        said = " ".join((error.server_message or str(error)).split())
        raise RecipeError(
            f"{key}: the Hub does not take it for {repository} ({error.response.status_code}: {said})"
        ) from error
    except (HTTPError, ConnectionError) as error:  # of the client that huggingface_hub has chosen
        raise RecipeError(f"{key}: the Hub cannot be reached for {repository} ({error})") from error
