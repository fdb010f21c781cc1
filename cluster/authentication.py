"""Ray's token: who holds it may run any code on a cluster, so every Ray that we start asks for it.

Ray 2.60 generates the token of a local cluster readable by everybody, and tries 20 s to join a cluster that has
refused the token before it says that it could not connect. Both are put right here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from search_spaces.errors import ClusterError

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
"""What a user sets; it stays as it is."""
PRIVATE = 0o600


def default_file() -> Path:
    """Return where Ray looks for the token if nothing else names it."""
    return Path.home() / ".ray" / "auth_token"


def source_of(environment: Mapping[str, str]) -> str:
    """Say where Ray takes the token from, without the token: an environment variable, or a file."""
    if TOKEN in environment:
        return f"${TOKEN}"
    return f"{environment[TOKEN_PATH]} (${TOKEN_PATH})" if TOKEN_PATH in environment else str(default_file())


def is_wide(file: Path) -> bool:
    """Whether others than its owner may read or write a file."""
    return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)


def require_token_file(file: Path, say: Callable[[str], None]) -> None:
    """Make the token that a local Ray will ask for, unless it is there; afterwards only its owner may read it.

    Args:   say: takes a line if a file that others could read has been narrowed.
    Raises: ClusterError if the file can be neither made nor narrowed.
    """
    try:
        if not file.exists():
            _create(file)
        elif is_wide(file):
            file.chmod(PRIVATE)
            say(f"{file} could be read by others and is 0600 now; a token that was seen is replaced by deleting it.")
    except OSError as error:
        raise ClusterError(
            f"{file}: Ray's token cannot be kept private there ({error.strerror}). Expected a file of yours with mode "
            f"0600: put that right, or name another one in ${TOKEN_PATH}."
        ) from error


def _create(file: Path) -> None:
    """Write a new token; of several processes that do so at once, one wins and the others use its token."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(handle, "w") as writer:
            writer.write(secrets.token_hex(32))  # 256 bits, as Ray's own
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def guard_local(say: Callable[[str], None]) -> None:
    """Let the Ray that this process is about to start ask for a token, unless the user has chosen otherwise."""
    os.environ.setdefault(MODE, "token")
    if os.environ[MODE].lower() == "token" and not {TOKEN, TOKEN_PATH} & os.environ.keys():
        require_token_file(default_file(), say)
    _read_environment_again()


def use_token_file(file: Path) -> None:
    """Let Ray in this process, and in those that it starts, ask for and show the token of a file."""
    os.environ.pop(TOKEN, None)
    os.environ.update({MODE: "token", TOKEN_PATH: str(file)})
    _read_environment_again()


def agree(address: str, say: Callable[[str], None]) -> None:
    """Choose the authentication that the cluster at an address wants, and show it our token; takes milliseconds.

    A cluster that asks for no token is joined without one, and a line says so. Ray alone would do either only where
    the user has set RAY_AUTH_MODE, and would try for 20 s before it gives up on a token.

    Args:   address: as --address; one that Ray cannot resolve is left to Ray.
    Raises: ClusterError if the cluster refuses the token, asks for one and there is none, or is none of Ray's.
    """
    where = _resolved(address)
    if where is None:
        return
    if MODE not in os.environ:
        if not _refuses(where):
            say(f"the Ray cluster at {where} asks for no token: whoever reaches it may run code there.")
            return
        os.environ[MODE] = "token"
        _read_environment_again()
    if problem := _refuses(where):
        raise ClusterError(
            f"--address {address}: the cluster refuses this token; {problem}. Expected the token of the cluster, as "
            f"`ray get-auth-token` prints it on its head: put it into a file with mode 0600 and name that in "
            f"${TOKEN_PATH}, or copy it to {default_file()}."
        )


def _refuses(where: str) -> str:
    """Return what the head of a cluster has against our token; empty if it is content. ClusterError if it is none."""
    from ray.exceptions import AuthenticationError

    raylet = _raylet()

    mode = os.environ.get(MODE, "").lower()
    try:
        if mode == "token" and not raylet.AuthenticationTokenLoader.instance().has_token():
            return f"found none in {source_of(os.environ)}"
    except AuthenticationError:  # where a file is named that is missing or empty
        return f"found none in {source_of(os.environ)}"
    try:
        with _quiet_stderr():
            raylet.GcsClient(address=where)
    except AuthenticationError:
        return f"found {source_of(os.environ)}" if mode == "token" else f"found ${MODE}={mode}, so none is sent"
    except Exception as error:
        raise ClusterError(
            f"{where} is no head of a Ray cluster that can be spoken to ({str(error).splitlines()[0]}). Expected "
            "HOST:PORT as `ray start --head` prints it, and the same version of Ray."
        ) from error
    return ""


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what Ray's C++ prints about a refusal off the terminal; it knows file descriptors alone."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _resolved(address: str) -> str | None:
    """Return HOST:PORT of an address; None where there is nothing to ask."""
    from ray._private import services

    try:
        found: str | None = services.canonicalize_bootstrap_address(address)
    except Exception:  # ray.init() says what is wrong with it
        return None
    return found


def _read_environment_again() -> None:
    """Let Ray, which reads its settings when it is imported, see what has been set since."""
    raylet = _raylet()
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _raylet() -> Any:
    """Return Ray's compiled module; what is used of it here is not public, and pinned by the tests."""
    return import_module("ray._raylet")
