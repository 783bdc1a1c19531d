"""Object stores, by fsspec: what a path of theirs needs, patience with them, and what goes wrong in a sentence.

A store that is busy, resets connections or is away is asked again for SIMCLR_JAX_PATIENCE seconds (300). All
calls to gcsfs and s3fs, those of orbax among them, pass `_patiently`; the arrays of a checkpoint go by
tensorstore, which tries again by itself.
"""

import asyncio
import contextlib
import functools
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from absl import logging

from simclr_jax.storage import StoreError, first_line, patience

STORES = {'gs': 'gcs', 's3': 's3'}      # scheme -> the extra that brings its package
_LONGEST_PAUSE = 15.0                   # seconds between two tries
_BUSY = (408, 429, 500, 502, 503, 504)
_away: set[str] = set()                 # stores that have used up the patience: nobody waits for them again

# What says that nobody has logged in, and that who has must not.
_NO_CREDENTIALS = ('Unable to locate credentials', 'NoCredentials', 'Anonymous caller', 'could not find default',
                   'default credentials', 'Invalid Credentials', ', 401', 'Login Required')
_REFUSED = ('Forbidden', 'Access Denied', 'AccessDenied', 'does not have storage.', 'InvalidAccessKeyId',
            'SignatureDoesNotMatch')
_LOGIN = {'gs': 'run gcloud auth application-default login, or give the machine a service account',
          's3': 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run aws configure, or give the machine a role'}


def scheme(path: str) -> str:
    """'gs' of 'gs://bucket/run'."""
    return path.partition('://')[0]


def split(path: str) -> tuple[str, str]:
    """(bucket, key)."""
    bucket, _, key = path.partition('://')[2].partition('/')
    return bucket, key


def call(path: str, method: str, *arguments: Any, **keywords: Any) -> Any:
    """`fsspec.filesystem(...).method(path, ...)`.

    Raises:
        FileNotFoundError, FileExistsError, IsADirectoryError: as of local files.
        StoreError: no such bucket, no permission, no credentials, or the store does not answer.
        OSError: the package is not installed, or there is no such scheme.
    """
    system = _system(scheme(path), path)
    if scheme(path) in STORES:
        _check_bucket(scheme(path), split(path)[0])
    arguments = (*arguments, path) if method == 'put_file' else (path, *arguments)
    return _told(path, functools.partial(getattr(system, method), *arguments, **keywords))


def check_writable(path: str) -> None:
    """See `storage.check_workdir`."""
    if scheme(path) not in STORES:
        raise ValueError(f"'{path}' cannot hold a run: a workdir is a local directory, gs://BUCKET/... or "
                         's3://BUCKET/....')
    if not all(split(path)):
        raise ValueError(f"'{path}' is a whole bucket: name a directory in it, such as {path}/run1.")
    probe = f'{path}/.writable-{uuid.uuid4().hex[:8]}'
    try:
        call(probe, 'pipe_file', b'')
        call(probe, 'rm_file')
    except (StoreError, OSError) as error:
        raise type(error)(str(error).replace(probe, path)) from error


@functools.cache
def _check_bucket(kind: str, bucket: str) -> None:
    """StoreError unless the bucket is there and may be listed; `get` of the bucket itself is a rarer right."""
    system, path = _system(kind, f'{kind}://{bucket}'), f'{kind}://{bucket}'
    ask = (functools.partial(system.call, 'GET', 'b/{}/o', bucket, maxResults=1) if kind == 'gs' else
           functools.partial(system.call_s3, 'list_objects_v2', Bucket=bucket, MaxKeys=1))
    try:
        _told(path, ask)
    except FileNotFoundError:
        raise StoreError(f"There is no bucket '{path}': make it, or correct the name.") from None


def _told(path: str, ask: Callable[[], Any]) -> Any:
    """ask(), with what a store may answer as an error of one sentence."""
    try:
        return ask()
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, StoreError):
        raise
    except Exception as error:
        text = ' '.join(str(e) for e in (error, error.__cause__) if e)
        login = _LOGIN.get(scheme(path))
        if login and any(words in text for words in _NO_CREDENTIALS):
            raise StoreError(f"'{path}': no credentials were found that the store accepts: {login}.") from error
        if isinstance(error, PermissionError) or any(words in text for words in _REFUSED):
            raise StoreError(f"'{path}': this account has no permission to do that ({first_line(error)}): let it "
                             'list, read, write and delete objects there.') from error
        if login and is_busy(error):
            raise StoreError(_gone(path, error)) from error
        if isinstance(error, OSError):
            raise
        raise OSError(f"'{path}': {type(error).__name__}: {first_line(error)}") from error


def _gone(where: str, error: BaseException) -> str:
    return (f"'{where}' has not answered for {patience():.0f} s ({first_line(error)}): "
            'when it is back, the same command resumes.')


# ---- patience --------------------------------------------------------------------------------------------


async def _patiently(kind: str, attempt: Callable[[], Awaitable[Any]]) -> Any:
    """The result of `attempt`, made again while the store is busy or away; StoreError when patience ends."""
    ends, pause = time.monotonic() + patience(), 0.25
    while True:
        try:
            result = await attempt()
            _away.discard(kind)
            return result
        except Exception as error:
            if not is_busy(error):
                raise
            if kind in _away or time.monotonic() + pause > ends:
                _away.add(kind)
                raise StoreError(_gone(f'{kind}://', error)) from error
            if pause > 1.0:
                logging.warning('%s:// does not answer (%s): trying again, for at most %.0f s.', kind,
                                first_line(error), ends - time.monotonic())
        await asyncio.sleep(pause * (0.5 + random.random()))
        pause = min(2 * pause, _LONGEST_PAUSE)


def is_busy(error: BaseException) -> bool:
    """Whether the same request may be answered later: a status of overload, or a connection that broke."""
    for cause in (error, error.__cause__):
        response = getattr(cause, 'response', None)     # botocore's
        status = (response.get('ResponseMetadata', {}).get('HTTPStatusCode') if isinstance(response, dict)
                  else getattr(cause, 'code', None))    # gcsfs's
        if str(status) in map(str, _BUSY):
            return True
        if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror | asyncio.TimeoutError):
            return True
        if cause is not None and any(base.__name__ in _BROKEN for base in type(cause).__mro__):
            return True
    return False


# aiohttp's, requests's and botocore's, by name: neither is there without its extra.
_BROKEN = ('ClientConnectionError', 'ClientPayloadError', 'HTTPClientError', 'IncompleteRead', 'ProxyError',
           'EndpointConnectionError', 'ChecksumError', 'ResponseParserError', 'Timeout', 'TransportError')


def _system(kind: str, path: str) -> Any:
    """The file system of a scheme. OSError: its package is not installed, or there is no such one."""
    import fsspec

    try:
        if kind in STORES:
            _prepare(kind)
        return fsspec.filesystem(kind)
    except ImportError as error:        # its words name the package
        extra = f"pip install 'simclr_jax[{STORES[kind]}]' " if kind in STORES else ''
        raise OSError(f"'{path}' needs a package that is not installed: {extra}({error}).") from error
    except ValueError as error:
        raise OSError(f"'{path}': no file system is called '{kind}' (gs, s3, az, hf, ... are).") from error


@functools.cache
def _prepare(kind: str) -> None:
    """Has fsspec, and with it etils.epath and orbax, use patient file systems that keep no listings."""
    import fsspec
    from etils.epath import gpath

    # epath would have tensorflow read buckets, which knows no s3:// and no endpoint but Google's own.
    os.environ['EPATH_USE_TF'] = 'false'
    gpath._is_tf_installed.cache_clear()
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')     # asks for rights that few have
    made = _patient_gcs() if kind == 'gs' else _patient_s3()
    for name in ('gs', 'gcs') if kind == 'gs' else ('s3',):
        fsspec.register_implementation(name, made, clobber=True)
        # What another process has written since must be seen.
        fsspec.config.conf.setdefault(name, {}).update(use_listings_cache=False, **(
            {'config_kwargs': {'retries': {'max_attempts': 0}}} if name == 's3' else {}))


def _patient_gcs() -> type:
    from gcsfs.core import GCSFileSystem

    once = GCSFileSystem._request.__wrapped__       # without gcsfs's own half minute of tries

    class PatientGCS(GCSFileSystem):
        async def _request(self, *arguments, **keywords):
            return await _patiently('gs', lambda: once(self, *arguments, **keywords))

    return PatientGCS


def _patient_s3() -> type:
    import s3fs

    class PatientS3(s3fs.S3FileSystem):
        retries = 3         # at once; then with patience

        async def _call_s3(self, *arguments, **keywords):
            return await _patiently('s3', lambda: super(PatientS3, self)._call_s3(*arguments, **keywords))

        async def _cat_file(self, *arguments, **keywords):
            return await _patiently('s3', lambda: super(PatientS3, self)._cat_file(*arguments, **keywords))

    return PatientS3


# ---- objects that are replaced on a condition ------------------------------------------------------------


def version(path: str) -> str:
    """What changes whenever an object is written; '' where there is none."""
    try:
        found = call(path, 'info')
    except FileNotFoundError:
        return ''
    return str(found.get('generation' if scheme(path) == 'gs' else 'ETag', ''))


def write_if(path: str, data: bytes, known: str) -> None:
    """Writes an object if it still has the version `known`, '' for none; FileExistsError: it has another."""
    if not known:
        try:
            call(path, 'pipe_file', data, mode='create')
        except FileExistsError:
            if call(path, 'cat_file') != data:      # or the answer to a first try was lost
                raise
        return
    bucket, key = split(path)
    if scheme(path) == 'gs':
        system, mark = _system('gs', path), uuid.uuid4().hex
        body = (f'--{mark}\r\nContent-Type: application/json\r\n\r\n{json.dumps({"name": key})}\r\n--{mark}\r\n'
                'Content-Type: application/octet-stream\r\n\r\n').encode() + data + f'\r\n--{mark}--'.encode()
        _told(path, functools.partial(
            system.call, 'POST', system.base.replace('/storage/v1/', '/upload/storage/v1/') + 'b/{}/o', bucket,
            uploadType='multipart', ifGenerationMatch=known, data=body,
            headers={'Content-Type': f'multipart/related; boundary="{mark}"'}))
        return
    try:
        _told(path, functools.partial(_system('s3', path).call_s3, 'put_object', Bucket=bucket, Key=key, Body=data,
                                      IfMatch=known))
    except OSError as error:
        if any(word in f'{error} {error.__cause__}' for word in ('PreconditionFailed', 'pre-condition', '412')):
            raise FileExistsError(path) from error
        raise


def append(path: str, data: bytes) -> None:
    """See `storage.append`."""
    for _ in range(20):
        known = version(path)
        before = call(path, 'cat_file') if known else b''
        with contextlib.suppress(FileExistsError):      # another process was faster
            write_if(path, before + data, known)
            return
    raise StoreError(f"'{path}' is constantly being written to by another program: stop that program.")
