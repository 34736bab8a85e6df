"""What ``ridgeline serve`` checks, and what it then becomes."""

import itertools
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ridgeline.cli import app
from ridgeline.models.manifest import write_manifest
from ridgeline.serving import launch
from ridgeline.serving.launch import ServeOptions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Files that no engine reads here, with their manifest."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    write_manifest(folder)
    return folder


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """What would have been executed, with vLLM "installed" and no key in the environment."""
    found = []
    monkeypatch.setattr(launch, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
    monkeypatch.delenv(launch.KEY, raising=False)
    return found


def invoke(*args: object):
    return CliRunner().invoke(app, ["serve", *map(str, args)])


def values(line: list[str]) -> dict[str, str]:
    return dict(itertools.pairwise(line))


def test_defaults_are_safe(model, started) -> None:
    result = invoke(model)
    assert result.exit_code == 0, result.output
    ((program, line, environment),) = started
    assert line[:3] == [program, "-m", "vllm.entrypoints.openai.api_server"]
    given = values(line)
    assert given["--model"] == str(model)
    assert given["--host"] == "127.0.0.1"
    assert int(given["--max-num-queued-reqs"]) == 256
    assert int(given["--shutdown-timeout"]) == 30
    assert given["--load-format"] == "safetensors"
    assert "--middleware" not in line  # no key on loopback
    assert not any("trust" in word for word in line)
    for name, value in launch.ENVIRONMENT.items():
        assert environment[name] == value


def test_options_and_those_of_the_engine_are_passed_on(model, started) -> None:
    given = "--host ::1 --port 80 --max-queue 3 --drain 5 -- --dtype float32 -tp 2"
    assert invoke(model, *given.split()).exit_code == 0
    ((_, line, _),) = started
    assert line[-4:] == ["--dtype", "float32", "-tp", "2"]
    found = values(line)
    assert [found[x] for x in ("--host", "--port")] == ["::1", "80"]
    assert [found[x] for x in ("--max-num-queued-reqs", "--shutdown-timeout")] == ["3", "5"]


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_key_guards_and_is_in_no_command_line(source, model, started, tmp_path, monkeypatch):
    key = "correct-horse"
    given = ["--host", "0.0.0.0"]
    if source == "file":
        path = tmp_path / "key"
        path.write_text(f"{key}\n")
        given += ["--key-file", path]
        monkeypatch.setenv(launch.KEY, "another")  # the file wins
    else:
        monkeypatch.setenv(launch.KEY, key)
    assert invoke(model, *given).exit_code == 0
    ((_, line, environment),) = started
    assert values(line)["--middleware"] == "ridgeline.serving.guard.Guard"
    assert environment[launch.KEY] == key
    assert not any(key in word for word in line)


def test_without_vllm_it_says_what_to_install(model, monkeypatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    result = invoke(model)
    assert isinstance(result.exception, ValueError)
    assert "pip install 'ridgeline[vllm]'" in str(result.exception)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_beyond_loopback_takes_a_key(host, model, started) -> None:
    result = invoke(model, "--host", host)
    assert str(result.exception).startswith("--host: expected a loopback address without a key")
    assert not started


@pytest.mark.parametrize("key", ["", " ", "two words", "clé", "tab\there"])
def test_keys_that_no_header_carries(key, model, started, monkeypatch) -> None:
    monkeypatch.setenv(launch.KEY, key)
    result = invoke(model)
    assert str(result.exception).startswith(f"{launch.KEY}: expected a key of visible ASCII")
    assert key.strip() == "" or key not in str(result.exception)
    assert not started


def test_an_empty_or_missing_key_file(model, started, tmp_path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "--key-file: expected a key" in str(invoke(model, "--key-file", empty).exception)
    assert isinstance(invoke(model, "--key-file", tmp_path / "none").exception, OSError)
    assert not started


@pytest.mark.parametrize(
    "given",
    [
        "--api-key=secret",
        "--api_key",
        "--api-k",
        "--trust-remote-code",
        "--trust_remote_code=true",
        "--tru",
        "--load-format",
        "--host",
        "--port=1",
        "--model",
        "--config",
        "--max-num-queued-reqs",
        "--shutdown_timeout",
    ],
)
def test_options_that_would_undo_a_default(given, model, started) -> None:
    result = invoke(model, "--", "--dtype", "float32", given, "value")
    name = given.partition("=")[0].replace("_", "-")
    assert str(result.exception).startswith(f"{name}: not passed to the engine, ")
    assert "secret" not in str(result.exception)
    assert not started


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "0"], "--port: expected"),
        (["--port", "65536"], "--port: expected at most 65535"),
        (["--max-queue", "0"], "--max-queue: expected"),
        (["--drain", "-1"], "--drain: expected"),
        (["another"], "expected one model and options after --"),
    ],
)
def test_bad_arguments_name_the_culprit(args, message, model, started) -> None:
    result = invoke(model, *args)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(message)
    assert not started


def test_no_directory_of_a_model(tmp_path, started) -> None:
    for path in (tmp_path / "none", tmp_path):
        assert "MODEL: expected a directory" in str(invoke(path).exception)
    assert not started


def test_weights_in_other_formats(model, started) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "expected weights in *.safetensors" in str(invoke(model).exception)
    assert not started


def test_a_flipped_bit_is_refused(model, started) -> None:
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    result = invoke(model)
    assert isinstance(result.exception, ValueError)
    assert "model.safetensors: altered" in str(result.exception)
    assert not started


def test_a_missing_file_is_refused(model, started) -> None:
    (model / "config.json").write_text('{"torch_dtype": "float64"}')
    assert "config.json: truncated or altered" in str(invoke(model).exception)
    (model / "config.json").unlink()
    assert "expected a directory with config.json" in str(invoke(model).exception)
    assert not started


def test_weights_that_the_manifest_does_not_list(model, started) -> None:
    (model / "more.safetensors").write_bytes(b"stale")
    assert "more.safetensors: not listed in manifest.json" in str(invoke(model).exception)
    assert not started


def test_without_a_manifest_it_warns(model, started) -> None:
    (model / "manifest.json").unlink()
    result = invoke(model)
    assert result.exit_code == 0
    assert "has no manifest, its files are unchecked" in result.stderr
    assert len(started) == 1


def test_an_option_is_never_a_name_of_another() -> None:
    """What the engine's own options begin with is not mistaken for one that is refused."""
    passed = ("--model-impl", "auto", "--port-range", "--max-num-seqs", "4", "-O0", "--middleware")
    assert ServeOptions(Path("m"), engine=passed).engine == passed
