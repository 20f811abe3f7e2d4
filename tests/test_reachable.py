import os
import socket
import warnings
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from lora_ga_cli.cli.app import main
from lora_ga_cli.reachable import _State, ask_hub_once, report_to
from tests.helpers import Arguments


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(_State, "tell", None)
    ask_hub_once.cache_clear()
    yield
    ask_hub_once.cache_clear()


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening}")
    assert ask_hub_once()
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.warns(UserWarning, match=r"^127\.0\.0\.1 cannot be reached: only its cache is used$"):
        assert not ask_hub_once()
    assert constants.is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for the processes that this one starts
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ask_hub_once()


def test_a_program_shows_it_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    told: list[str] = []
    report_to(told.append)
    assert not ask_hub_once()
    assert told == ["127.0.0.1 cannot be reached: only its cache is used"]


def test_a_command_tells_it_once(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["train", *arguments("llama", "model.path=nobody/nothing", "--dry-run")]) == 2
    assert capsys.readouterr().err.count("127.0.0.1 cannot be reached") == 1


def test_behind_a_proxy_the_libraries_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert ask_hub_once()
    assert not constants.HF_HUB_OFFLINE
