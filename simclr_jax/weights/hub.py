"""Encoders on the Hugging Face Hub: 'hf:OWNER/NAME' is read, `export.push_to_hub` writes.

Needs huggingface_hub, the extra `hub`. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count as in all programs
that use the Hub. Nothing is sent but by these two functions.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import simclr_jax
from simclr_jax import storage

_PLACE = re.compile(r'hf:(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?')
_FORM = 'hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE'
_ENCODERS = ('encoder.flax.safetensors', 'encoder.safetensors')     # of an export, the first that is there


def is_hub(path: str | os.PathLike) -> bool:
    """Whether a path is of the Hub: 'hf:...', but not fsspec's 'hf://...'."""
    path = os.fspath(path)
    return path.startswith('hf:') and not path.startswith('hf://')


def fetch(path: str) -> str:
    """The local file of weights behind 'hf:OWNER/NAME', downloaded into the Hub's cache unless it is there.

    Args:
        path: a repository that an export was pushed to, with '@REVISION' for a branch, tag or commit; or a file
            of any repository, 'hf:OWNER/NAME/FILE', of the kinds that `read_weights` knows.

    Raises:
        FileNotFoundError: there is no such repository, revision or file, or the Hub cannot be reached and they
            are not in the cache.
        ValueError: the path has another form, or huggingface_hub is not installed.
        OSError: the Hub refuses.
    """
    found = _PLACE.fullmatch(path)
    if not found:
        raise ValueError(f'{path!r} names no repository of the Hugging Face Hub: write {_FORM}.')
    api = _api(f'Reading {path}')
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
    repository, revision = found['repository'], found['revision']
    local = ''
    with _sentences(repository, revision):
        for name in (found['file'],) if found['file'] else _ENCODERS:
            try:
                local = api.hf_hub_download(repository, name, revision=revision)
                break
            except RemoteEntryNotFoundError:
                continue
        if os.path.basename(local) == 'encoder.safetensors':        # its head stands beside it
            with contextlib.suppress(RemoteEntryNotFoundError, LocalEntryNotFoundError):
                api.hf_hub_download(repository, f'{name[:-len("encoder.safetensors")]}head.safetensors',
                                    revision=revision)
    if not local:
        wanted = found['file'] or ' or '.join(_ENCODERS)
        fix = '' if found['file'] else f': name a file of it, as hf:{repository}/model.safetensors'
        raise FileNotFoundError(f'The repository {repository} has no file {wanted}{fix}.')
    return local


def check_push(repository: str) -> None:
    """ValueError where `push` cannot work: the name's form, huggingface_hub or a token is missing."""
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
        raise ValueError(f'export.push_to_hub is {repository!r}: it takes OWNER/NAME, a repository of the Hugging '
                         'Face Hub.')
    _api('export.push_to_hub')
    from huggingface_hub import get_token
    if not get_token():
        raise ValueError('export.push_to_hub needs a token of the Hugging Face Hub: run `hf auth login`, or set '
                         'HF_TOKEN.')


def push(directory: str, names: Iterable[str], repository: str, *, replaces: Iterable[str] = ()) -> str:
    """Uploads files and directories of `directory`, in one commit; a repository that is not there is made, private.

    Args:
        names: what is uploaded, nothing else.
        replaces: what else is taken out of the repository, where it is there: of an earlier export.

    Returns:
        The address of the repository.

    Raises: as `check_push`, and OSError: the Hub cannot be reached, or refuses.
    """
    check_push(repository)
    api = _api('export.push_to_hub')
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    here = pathlib.Path(directory)
    files = [file.relative_to(here).as_posix() for name in names
             for file in (here / name, *(here / name).rglob('*')) if file.is_file()]
    with _sentences(repository, None):
        address = api.create_repo(repository, private=True, exist_ok=True)
        stale = [name for name in api.list_repo_files(repository)
                 if name not in files and any(name == old or name.startswith(f'{old}/') for old in replaces)]
        operations: list[Any] = [CommitOperationAdd(name, os.path.join(directory, name)) for name in files]
        operations += [CommitOperationDelete(name) for name in stale]
        api.create_commit(repository, operations, commit_message=f'Export of simclr_jax {simclr_jax.__version__}')
    return str(address)


def _api(what: str) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ValueError(f"{what} needs the package huggingface_hub: pip install 'simclr_jax[hub]'.") from error
    return HfApi(endpoint=os.environ.get('HF_ENDPOINT'), library_name='simclr_jax',
                 library_version=simclr_jax.__version__)


@contextlib.contextmanager
def _sentences(repository: str, revision: str | None) -> Iterator[None]:
    """What goes wrong on the way to the Hub, in one sentence each."""
    from huggingface_hub import constants, errors
    hub = os.environ.get('HF_ENDPOINT') or constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise OSError(f'The repository {repository} is gated: accept its conditions on '
                      f'{hub}/{repository}, with the account of your token (`hf auth login`).') from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f'There is no repository {repository} at {hub}, or it is private and your token '
                                'has no access to it (`hf auth login`, or HF_TOKEN).') from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f'The repository {repository} has no revision {revision!r}.') from error
    except errors.HfHubHTTPError as error:
        raise OSError(f'{hub} refuses a request for {repository}: {storage.first_line(error)}.') from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        raise FileNotFoundError(f'{hub} cannot be reached, and what is asked of {repository} is not in the cache of '
                                'this machine: check the network, HF_ENDPOINT and HF_HUB_OFFLINE.') from error
    except ValueError as error:
        raise ValueError(f'The Hub refuses {repository}: {" ".join(str(error).split())}') from error
