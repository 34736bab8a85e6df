"""A pytest plugin that plants a bug: ``python -m pytest -p plant`` with the bug in ``PLANTED``.

``PLANTED`` holds module, old and new text as JSON; the module is compiled with the one replaced by
the other before any test imports it.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys

MODULE, OLD, NEW = json.loads(os.environ["PLANTED"])


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str):
        source = self.get_data(self.path).decode()
        assert source.count(OLD) == 1, f"{OLD!r} is not one place in {fullname}"
        return compile(source.replace(OLD, NEW), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target=None):
        if fullname != MODULE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _Loader(fullname, spec.origin)
                return spec
        return None


assert MODULE not in sys.modules
sys.meta_path.insert(0, _Finder())
