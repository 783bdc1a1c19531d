"""A stand-in of the Hugging Face Hub: the few requests that huggingface_hub makes for us, kept in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_of_a_test'


class Hub(http.server.ThreadingHTTPServer):
    """repositories: {'owner/name': {'private': bool, revision: {file: bytes}}}; requests: what was asked."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repositories, self.requests = {}, []
        self.endpoint = f'http://127.0.0.1:{self.server_port}'


@contextlib.contextmanager
def running_hub():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, status=200, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        if tree := re.fullmatch('/api/models/(.+?/.+?)/tree/(.+)', path):
            files = self.server.repositories[tree[1]][tree[2]]
            return self.answer(body=[{'type': 'file', 'path': name, 'size': len(data), 'oid': '0'}
                                     for name, data in files.items()])
        found = re.fullmatch('/(?:api/models/)?([^/]+/[^/]+)(?:/resolve/([^/]+)/(.+))?', path)
        repository, revision, name = found.groups()
        kept = self.server.repositories.get(repository)
        if kept is None or kept['private'] and not self.allowed():
            return self.answer(401, X_Error_Code='RepoNotFound')
        if revision not in kept:
            return self.answer(404, X_Error_Code='RevisionNotFound')
        commit = hashlib.sha1(repr(sorted(kept[revision].items())).encode()).hexdigest()
        if name not in kept[revision]:
            return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
        data = kept[revision][name]
        return self.answer(body=data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def do_POST(self):
        text = self.rfile.read(int(self.headers['Content-Length']))
        self.server.requests.append((self.command, self.path))
        if not self.allowed():
            return self.answer(403, {'error': 'You have no right to write here'})
        if self.path == '/api/validate-yaml':
            return self.answer(body={})
        if self.path == '/api/repos/create':
            asked = json.loads(text)
            name = f'{asked["organization"]}/{asked["name"]}'
            found = name in self.server.repositories
            self.server.repositories.setdefault(
                name, {'private': asked.get('visibility') == 'private', 'main': {'.gitattributes': b''}})
            return self.answer(409 if found else 200, {'url': f'{self.server.endpoint}/{name}'})
        repository, action = re.fullmatch('/api/models/(.+?/.+?)/(preupload|commit)/main', self.path).groups()
        files = self.server.repositories[repository]['main']
        if action == 'preupload':
            return self.answer(body={'files': [
                {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                for file in json.loads(text)['files']]})
        for line in map(json.loads, text.splitlines()):
            if line['key'] == 'file':
                files[line['value']['path']] = base64.b64decode(line['value']['content'])
            elif line['key'] == 'deletedFile':
                del files[line['value']['path']]
        return self.answer(body={'commitUrl': f'{self.server.endpoint}/{repository}/commit/1', 'commitOid': '1'})

    def allowed(self):
        return self.headers.get('Authorization') == f'Bearer {TOKEN}'
