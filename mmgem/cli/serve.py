"""``mmgem serve``: an HTTP API and a web page over a model, an index and a corpus."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.hits import open_index
from mmgem.cli.inputs import DeviceOption, PrecisionOption, default_model, load_model
from mmgem.cli.output import exit_now, note
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text

if TYPE_CHECKING:
    from mmgem.serve.limits import Limits


def serve(
    idx: Annotated[
        Path | None, typer.Argument(metavar="[IDX]", help="Folder made by mmgem index; none: no search.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="M", help="The index's own, or tiny, if not given."),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model that has learned a corpus of texts as well.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Clients must send this file's token; or set MMGEM_TOKEN."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Another site whose pages may ask, like https://example.org."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Without a token: a name that requests may be sent to."),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Fetch photos from public http(s) addresses.")
    ] = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Change a limit; see docs/serving.md.")
    ] = None,
) -> None:
    """Serve an HTTP API (OpenAI's and our own) and a web page until interrupted.

    The index may grow meanwhile: mmgem index in another process, and what it adds is found. Without a token
    only requests to a name of this machine or to an address are answered.
    """
    limits = _limits(limit or [])
    origins = [_origin(url) for url in allow_origin or []]
    token = _token(token_file)
    note("loading ..." if model is None else f"loading {Path(model).name} ...")
    try:
        from mmgem.serve.server import listen, make_server
    except ImportError as error:
        raise UsageError(f'serving needs more packages: pip install "mmgem[serve]" ({error.name})') from error
    from mmgem.checkpoints.resolve import lasting_name
    from mmgem.serve.metrics import Metrics
    from mmgem.serve.service import Service, ServiceOptions

    name = model or (open_index(idx, None)[1] if idx is not None else default_model())
    sock = listen(host, port)
    mmgem = load_model(lasting_name(name), device, precision)
    corpus_model = None
    if corpus is not None:
        from mmgem.self_retrieval.model import SelfRetrieval

        corpus_model = SelfRetrieval.from_pretrained(corpus, device, precision)
    options = ServiceOptions(Path(name).name, Path(corpus).name if corpus else "", allow_remote)
    service = Service(mmgem, options, limits, Metrics(), idx, corpus_model)
    socket_address = sock.getsockname()
    local = token is None and _loopback(socket_address[0])
    hosts = None if token is not None else {name.lower() for name in allow_host or []}
    if hosts is not None and not local:
        note("warning: no token: whoever reaches this port can see the photos")
        hosts |= {name := socket.gethostname().lower(), f"{name}.local"}
    address = f"[{socket_address[0]}]" if ":" in socket_address[0] else socket_address[0]

    def started() -> None:
        photos = (
            f"{len(service.index_watcher.gallery)} photos of {idx}"
            if service.index_watcher is not None
            else "no index"
        )
        print(f"http://{address}:{socket_address[1]}", flush=True)
        note(f"serving {options.name}, {photos}; stop with Ctrl-C")

    make_server(service, token, origins, local, hosts, started).run(sockets=[sock])
    exit_now()  # a photo or a batch nobody waits for may still be in a thread; nothing is left to save


def _limits(changes: list[str]) -> Limits:
    from dataclasses import fields

    from mmgem.config import from_dict
    from mmgem.errors import ConfigError
    from mmgem.serve.limits import Limits

    values: dict[str, float] = {}
    integer_names = {field.name for field in fields(Limits) if isinstance(field.default, int)}
    for change in changes:
        name, _, value = change.partition("=")
        try:
            values[name] = int(value) if name in integer_names else float(value)
        except ValueError as error:
            raise ConfigError(f"--limit {change}: must be NAME=NUMBER") from error
    return from_dict(Limits, values)


def _token(file: Path | None) -> str | None:
    """The token of ``file`` or the environment. Raises ``UsageError`` for an empty one."""
    if file is None:
        token, source = os.environ.get("MMGEM_TOKEN"), "MMGEM_TOKEN"
    else:
        try:
            token, source = read_text(file), str(file)
        except (UsageError, DataError) as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise UsageError(f"--token-file {file}: cannot be read: {reason}") from error
    if token is None:
        return None
    if not token.strip() or not token.strip().isascii():
        raise UsageError(f"{source}: must hold a token, in ASCII")
    return token.strip()


def _origin(url: str) -> str:
    """An origin as browsers send it. Raises ``UsageError`` for anything else."""
    if not re.fullmatch(
        r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?", origin := url.lower().rstrip("/")
    ):
        raise UsageError(
            f"--allow-origin {url}: must be a site like https://photos.example.org, without a path"
        )
    return origin


def _loopback(address: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(address).is_loopback
