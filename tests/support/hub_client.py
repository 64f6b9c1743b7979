"""Makes the real client of the Hub, in this process, take a server of the tests for the Hub."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from huggingface_hub import close_session, constants, file_download, hf_api
from huggingface_hub.utils import (
    _detect_agent,
    _http,
    _xet,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from support.hub_server import HubServer
from transformers.utils import hub as transformers_hub

# Of each second that the client would wait before it tries again.
PAUSE = 0.001
# Bytes. The client keeps what it downloads in such pieces: 10 MiB, more than a test's files have.
PIECE = 2**12
NO_REGISTRY = {"standardEnvVars": [], "harnesses": {}}


@contextmanager
def connected(home: Path, part_size: int | None = None, xet: bool = False) -> Iterator[HubServer]:
    """A server, and the client in this process and, with `environment`, in others that takes it for the Hub.

    Cache, token and everything else that the client leaves on the disk is below `home`. The client tries as often as
    it always does, but hardly waits in between.
    """
    home.mkdir(parents=True)
    with HubServer(home, part_size, xet) as server, pytest.MonkeyPatch.context() as patch:
        # Otherwise the first request of every process would be for this list.
        (home / ".agent_harnesses.json").write_text(json.dumps(NO_REGISTRY))
        for name, value in server.environment.items():
            patch.setenv(name, value)
        for name, value in _constants(server).items():
            patch.setattr(constants, name, value)
        patch.setattr(hf_api.api, "endpoint", server.endpoint)
        patch.setattr(transformers_hub, "_hf_api", None)  # it knows the address of the server before
        patch.setattr(_detect_agent, "_registry", NO_REGISTRY)
        # A session remembers where its cache is.
        patch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
        patch.setattr(_xet, "XET_CONNECTION_INFO_CACHE", {})
        for module in (_http, file_download):
            patch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * PAUSE)))
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        close_session()
        try:
            yield server
        finally:
            close_session()
            if shown:
                enable_progress_bars()


def _constants(server: HubServer) -> dict[str, object]:
    """What the client read from the environment when it was imported."""
    home = server.home
    return {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": constants.HF_URL_HOSTS | {urlsplit(server.endpoint).hostname},
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "DOWNLOAD_CHUNK_SIZE": PIECE,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": server.xet is None,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
