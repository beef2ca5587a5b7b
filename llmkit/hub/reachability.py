"""Reachability of the Hugging Face Hub: whether the network may be used, whether the Hub responds, and timeouts.

Knows connections, their failures, and which failures are remembered for a while. Knows nothing of models and files: the
caller decides what to request and what a refusal means.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmkit.config.paths import cache_dir, make_cache_dir
from llmkit.errors import without_password
from llmkit.files import write_whole

# huggingface_hub is imported inside functions: it costs 0.3 s, and a local folder never needs it.
if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "DEADLINE",
    "PATIENCE",
    "REMEMBERED",
    "UnreachableError",
    "ask",
    "forget_unreachable",
    "hub_address",
    "hub_name",
    "hub_reachable",
    "is_offline",
    "mirror_hint",
    "offline",
    "reason",
]

DEADLINE = 4.5
"""Seconds for the first answer of the Hub in a process: a DNS failure alone can take 23, a silent host 110."""
PATIENCE = 30.0
"""Seconds for an answer once the Hub is known to be up, or in a command that only downloads."""
REMEMBERED = 600.0
"""Seconds for which an unreachable Hub is not tried again, by any process of this user."""

_DEFAULT = "https://huggingface.co"
_reached: set[str] = set()  # endpoints that answered this process

T = TypeVar("T")


class UnreachableError(Exception):
    """The Hub did not answer, or not like a Hub; the text says why."""


def is_offline() -> bool:
    """Whether no network may be used (``--offline``, ``HF_HUB_OFFLINE``, ``TRANSFORMERS_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


_offline: list[tuple[bool, str | None]] = []
"""Previous state, one entry per active `offline` context."""
_switching = threading.Lock()


@contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Context manager in which no thread or child process of this process uses the network."""
    from huggingface_hub import constants

    if not wanted:
        yield
        return
    with _switching:
        _offline.append((constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")))
        constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    try:
        yield
    finally:
        with _switching:
            # Whoever leaves takes the newest entry, so that the last to leave finds what held before the first came.
            constants.HF_HUB_OFFLINE, value = _offline.pop()
            os.environ.pop("HF_HUB_OFFLINE") if value is None else os.environ.update(HF_HUB_OFFLINE=value)


def hub_reachable() -> bool:
    """Whether the Hub answers, found out within `DEADLINE`; a "no" is remembered for `REMEMBERED` seconds."""
    from huggingface_hub import constants, get_session

    if constants.ENDPOINT in _reached and not is_offline():
        return True
    try:
        ask(lambda api, seconds: get_session().head(api.endpoint, timeout=seconds))
    except UnreachableError:
        return False
    return True


def forget_unreachable() -> None:
    """Forget which endpoints did and did not answer, so that the next question is asked."""
    _reached.clear()
    with suppress(OSError):
        _memory().unlink(missing_ok=True)


def _memory() -> Path:
    return cache_dir() / "unreachable.json"


def _remembered(endpoint: str) -> str | None:
    """Why the endpoint was unreachable lately, None if it was not. A damaged memory counts as none."""
    try:
        entry = json.loads(_memory().read_text(encoding="utf-8"))[_public(endpoint)]
        age, why = time.time() - entry["at"], str(entry["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"{why}, {age:.0f} s ago" if 0 <= age < REMEMBERED else None


def _remember(endpoint: str, why: str) -> None:
    _reached.discard(endpoint)
    content = {_public(endpoint): {"at": time.time(), "why": why}}
    with suppress(OSError):
        make_cache_dir()
        write_whole(_memory(), json.dumps(content))
        _memory().chmod(0o600)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, or TimeoutError: a name look-up obeys no timeout of its own.

    A daemon thread, unlike one of an executor, does not hold up the end of the process.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            future.set_exception(error)

    threading.Thread(target=run, name="llmkit-hub", daemon=True).start()
    return future.result(seconds)


def ask(question: Callable[[HfApi, float], T], *, patient: bool = False) -> T:
    """Send one request to the Hub. The first request of a process also serves as the probe.

    Raises:
        UnreachableError: no answer, now or lately, or none that makes sense.
        HfHubHTTPError: the Hub answered and refused.
    """
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = constants.ENDPOINT
    if is_offline():
        raise UnreachableError("offline mode is on")
    if endpoint not in _reached and (why := _remembered(endpoint)):
        raise UnreachableError(why)
    seconds = PATIENCE if patient or endpoint in _reached else DEADLINE
    try:
        answer = _within(seconds, lambda: question(HfApi(endpoint=endpoint, library_name="llmkit"), seconds))
    except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as error:
        why = reason(error)
        _remember(endpoint, why)
        raise UnreachableError(why) from error
    except HfHubHTTPError as error:
        _reached.add(endpoint)
        if error.response.status_code >= 500:
            raise UnreachableError(f"it answered with an error {error.response.status_code}") from error
        raise
    except UnicodeError as error:
        raise UnreachableError("HF_TOKEN or HF_ENDPOINT holds a character that cannot be sent") from error
    except (ValueError, KeyError, TypeError) as error:
        # A log-in page of a hotel, or an HF_ENDPOINT that is something else.
        raise UnreachableError(f"{_public(endpoint)} does not answer like a model hub") from error
    _reached.add(endpoint)
    return answer


def reason(error: BaseException) -> str:
    """A few words on a failed connection."""
    import httpx2

    text = without_password(" ".join(str(error).split()))
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return "no answer in time"
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy failed, see HTTPS_PROXY: {text}"
    if isinstance(error, httpx2.LocalProtocolError):
        return "the request cannot be sent, see HF_TOKEN"  # its own text would quote the token
    if "SSL" in text:
        return f"its certificate was not accepted, see SSL_CERT_FILE: {text}"
    return text or type(error).__name__


def hub_name() -> str:
    """The Hub's name in messages: with its address if that is not the default."""
    address = hub_address()
    return "the model hub" + ("" if address == _DEFAULT else f" {address}")


def mirror_hint() -> str:
    """What a user can do about a Hub that cannot be reached, apart from repairing the network."""
    address = hub_address()
    return "set HF_ENDPOINT to a mirror of the Hub" if address == _DEFAULT else f"check HF_ENDPOINT, which is {address}"


def hub_address() -> str:
    """The Hub's address, without a password."""
    from huggingface_hub import constants

    return _public(constants.ENDPOINT)


def _public(endpoint: str) -> str:
    """An address without user and password, even where signs in them should have been encoded."""
    return re.sub(r"^(\w+://)?.*@", r"\1", endpoint)
