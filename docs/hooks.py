"""MkDocs: files of the repository beside docs/ become part of the site where a page links to them.

Links in docs/ and in these files are written as on disk (`../examples/encoder.py`), so that they also work where the
repository is browsed. Here they are turned to where the file lies on the site.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ['benchmarks/RESULTS.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
COPIED = ['LICENSE', 'SECURITY.md', 'CITATION.cff', *(
    str(path.relative_to(ROOT)) for pattern in ('examples/*', 'configs/**/*.py', 'benchmarks/*.json')
    for path in ROOT.glob(pattern) if path.is_file())]
_LINK = re.compile(r'(\]\()([^)#:\s]+)(#[^)\s]*)?(\))')


def on_files(files, config):
    for path in (*PAGES, *COPIED):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    page_on_disk = page.file.src_uri if page.file.src_uri in PAGES else f'docs/{page.file.src_uri}'

    def moved(link):
        on_disk = posixpath.normpath(posixpath.join(posixpath.dirname(page_on_disk), link[2]))
        on_site = 'index.md' if on_disk == 'README.md' else on_disk.removeprefix('docs/')
        relative = posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or '.')
        return f'{link[1]}{relative}{(link[3] or "") if on_disk != "README.md" else ""}{link[4]}'

    return _LINK.sub(moved, markdown)
