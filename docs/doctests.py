"""Griffe, which reads the docstrings for the API page: an example (`>>> ...`) becomes a block of code."""

import re

import griffe

_EXAMPLE = re.compile(r'^>>> .*(?:\n.+)*', re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts a fence around the examples of every docstring."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r'```pycon\n\g<0>\n```', obj.docstring.value)
