"""Runs tests with a bug planted in a module, one fork of a warm process a bug.

Each line of standard input holds, as JSON, module, old text, new text and pytest's arguments. The
module is compiled with the one text replaced by the other before any test imports it. Each line of
standard output answers with pytest's exit code and what it printed.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile

# What the tests import, but for the package: a fork then starts in no time.
import hypothesis.stateful  # noqa: F401
import pytest
import torch  # noqa: F401


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, old: str, new: str) -> None:
        super().__init__(name, path)
        self._texts = old, new

    def get_code(self, fullname: str):
        source, (old, new) = self.get_data(self.path).decode(), self._texts
        assert source.count(old) == 1, f"{old!r} is not one place in {fullname}"
        return compile(source.replace(old, new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, old: str, new: str) -> None:
        self._module, self._texts = module, (old, new)

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname != self._module:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _Loader(fullname, spec.origin, *self._texts)
                return spec
        return None


def _run(module: str, old: str, new: str, arguments: list[str]) -> tuple[int, str]:
    assert module not in sys.modules
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.meta_path.insert(0, _Finder(module, old, new))
            code = pytest.main(arguments)
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_run(*json.loads(line))), flush=True)
