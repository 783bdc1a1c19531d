"""MkDocs: files of the repository beside docs/ become part of the site, notebooks as pages.

Links in docs/ and in these files are written as on disk (`../examples/encoder.py`), so that they also work
where the repository is browsed. Here they are turned to where the file lies on the site.
"""

import json
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ['benchmarks/RESULTS.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md']
NOTEBOOKS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('examples/*.ipynb'))
COPIED = ['LICENSE', 'NOTICE', 'CITATION.cff', *(
    str(path.relative_to(ROOT)) for pattern in ('examples/*.py', 'configs/**/*.py', 'benchmarks/*.json')
    for path in ROOT.glob(pattern))]
_BLOCK = re.compile(r'(^```.*?^```$)', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'(\]\()([^)#:\s]+)(#[^)\s]*)?(\))')


def on_files(files, config):
    """Adds the pages that lie beside docs/, and what they link to."""
    for path in (*PAGES, *COPIED):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path in NOTEBOOKS:
        content = notebook_page(json.loads((ROOT / path).read_text()))
        files.append(File.generated(config, f'{path}.md', content=content))
    return files


def notebook_page(notebook):
    """A notebook as Markdown: text, code, and what it printed and drew."""
    parts = []
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        parts.append(source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
        for output in cell.get('outputs', ()):
            data = output.get('data', {})
            if 'image/png' in data:
                picture = ''.join(data['image/png']).strip()
                parts.append(f'<img alt="What the code above draws" src="data:image/png;base64,{picture}">')
            elif text := ''.join(output.get('text', '')):
                parts.append(f'```text\n{text.rstrip()}\n```')
    return '\n\n'.join(parts)


def on_page_markdown(markdown, page, config, files):
    """The page with its links turned to where the files lie on the site."""
    made = page.file.src_uri in PAGES or page.file.src_uri.removesuffix('.md') in NOTEBOOKS
    page_on_disk = page.file.src_uri if made else f'docs/{page.file.src_uri}'

    def moved(link):
        on_disk = posixpath.normpath(posixpath.join(posixpath.dirname(page_on_disk), link[2]))
        on_site = 'index.md' if on_disk == 'README.md' else on_disk.removeprefix('docs/')
        on_site += '.md' if on_disk in NOTEBOOKS else ''
        relative = posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or '.')
        return f'{link[1]}{relative}{(link[3] or "") if on_disk != "README.md" else ""}{link[4]}'

    return ''.join(part if part.startswith('```') else _LINK.sub(moved, part)
                   for part in _BLOCK.split(markdown))
