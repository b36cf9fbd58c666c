"""``mmgem``: the verbs, and the one place where errors become a line on standard error and an exit code.

Each verb is a file of its own beside this one, and imports what is heavy (torch, numpy) only when it runs:
``mmgem --help`` stays instant. Set ``MMGEM_DEBUG=1`` to see where an error came from.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import takewhile
from typing import Annotated, Any, TextIO

import typer

from mmgem import __version__
from mmgem.cli.adopt import adopt
from mmgem.cli.bulk import bulk
from mmgem.cli.calibrate import calibrate
from mmgem.cli.caption import caption
from mmgem.cli.check import check
from mmgem.cli.classify import classify
from mmgem.cli.cluster import cluster
from mmgem.cli.compare import compare
from mmgem.cli.completion import completion
from mmgem.cli.corpus import app as corpus
from mmgem.cli.data import app as data
from mmgem.cli.demo import demo
from mmgem.cli.duplicates import duplicates
from mmgem.cli.embed import embed
from mmgem.cli.eval import EvalCommand, evaluate
from mmgem.cli.export import export
from mmgem.cli.heatmap import heatmap
from mmgem.cli.index import index
from mmgem.cli.mosaic import mosaic
from mmgem.cli.output import log_to_stderr, note
from mmgem.cli.plan import plan
from mmgem.cli.pull import pull
from mmgem.cli.search import search
from mmgem.cli.serve import serve
from mmgem.cli.store import app as store
from mmgem.cli.train import train
from mmgem.cli.user_defaults import default_map
from mmgem.cli.watch import watch
from mmgem.errors import MMGEMError, UsageError
from mmgem.utils.disk import disk_problem
from mmgem.utils.plugins import load_named_plugins, load_plugin, plugin_line
from mmgem.utils.progress import heartbeat

# What typer raises for a bad command line is not exported by name, but it is the base of this one.
_BadCommandLine: type[Exception] = typer.BadParameter.__mro__[1]

_COMPLETING = "_MMGEM_COMPLETE"
_INTERNAL, _INTERRUPTED, _BROKEN_PIPE = 70, 130, 141

app = typer.Typer(
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo", short_help="All of it on sample photos, or yours: one web page.")(demo)
app.command("index", short_help="Make a folder of photos searchable.")(index)
app.command("watch", short_help="Keep an index up to date as photos come and go.")(watch)
app.command("search", short_help="Find photos by words, or by a photo.")(search)
app.command("duplicates", short_help="Find copies among photos.")(duplicates)
app.command("cluster", short_help="Sort photos into groups that look alike.")(cluster)
app.command("caption", short_help="Describe photos, or boxes of them.")(caption)
app.command("classify", short_help="Sort photos into classes you name.")(classify)
app.command("heatmap", short_help="Where in a photo a text is.")(heatmap)
app.command("embed", short_help="Vectors of photos and texts.")(embed)
app.command("bulk", short_help="Embed a large collection, part by part.")(bulk)
app.command("serve", short_help="HTTP API and web page over an index.")(serve)
app.command("plan", short_help="What a recipe will cost, before it runs.")(plan)
app.command("train", short_help="Train a model from a recipe.")(train)
app.command("adopt", short_help="A model of any CLIP and any LLM, from texts alone.")(adopt)
app.command("compare", short_help="Train several recipes alike, and compare them.")(compare)
app.command("eval", cls=EvalCommand, short_help="Measure a model on a test set.")(evaluate)
app.command("calibrate", short_help="Let a model say what is no match.")(calibrate)
app.command("mosaic", short_help="Make regions of captioned photos.")(mosaic)
app.add_typer(corpus, name="corpus", short_help="Search and question texts a model has learned.")
app.add_typer(data, name="data", short_help="Check and clean data sets, write shards.")
app.add_typer(store, name="store", short_help="An index in a vector store.")
app.command("check", short_help="Whether what was written is still whole.")(check)
app.command("export", short_help="A small copy of a model, or one that is fast on a CPU.")(export)
app.command("pull", short_help="Fetch base weights or sample photos.")(pull)
app.command("completion", short_help="Let the shell complete verbs and options.")(completion)


def _version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done; 1 a search found nothing, or the data, the model or the disk is at fault, "
    "and a line on standard error says how; 2 the command line or the recipe is; 70 a bug in mmgem; 130 "
    "interrupted. A photo among others that cannot be read is reported and skipped; only if none can be read "
    "is that an error."
)
def _mmgem(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="FILE_OR_MODULE",
            help="Python that registers encoders, connectors, stores or tasks of your own; repeatable. "
            "MMGEM_PLUGINS names more.",
        ),
    ] = None,
) -> None:
    """Embed, search, classify and caption images with one small model."""
    for plugin in plugins or ():
        load_plugin(plugin)
    load_named_plugins()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the program's own) and return its exit code.

    Never raises: what goes wrong is one line on standard error, with a traceback before it if the environment
    variable ``MMGEM_DEBUG`` is set.
    """
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if _COMPLETING in os.environ:  # the shell asks what may come next
        typer.main.get_command(app).main(args, "mmgem")
    try:
        with warnings.catch_warnings(), log_to_stderr():
            warnings.showwarning = _show_warning
            _let_any_text_through()
            command = typer.main.get_command(app)
            defaults = default_map(command, args)
            with command.make_context("mmgem", args, default_map=defaults) as context, _heartbeat(args):
                command.invoke(context)
            sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except KeyboardInterrupt:
        note("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _BROKEN_PIPE
    except Exception as error:
        return _report(error)
    return 0


def _heartbeat(args: Sequence[str]) -> AbstractContextManager[None]:
    """A line every half minute where nobody looks at a bar; of several processes the first one's."""
    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    return heartbeat(" ".join(["mmgem", *takewhile(re.compile("[a-z-]+").fullmatch, args[:2])]))


def _report(error: Exception) -> int:
    """Print what went wrong on one line and return the exit code."""
    if os.environ.get("MMGEM_DEBUG"):
        import traceback

        traceback.print_exception(error)
    message, code = str(error), MMGEMError.exit_code
    if problem := disk_problem(error):
        message = problem
    elif isinstance(error, MMGEMError):
        code = error.exit_code
    elif isinstance(error, _BadCommandLine):
        bad_line: Any = error
        command = bad_line.ctx.command_path if bad_line.ctx is not None else "mmgem"
        option = getattr(error, "option_name", None) or "--"
        hint = "" if option.startswith("--") else "; what begins with a minus and is no option comes after --"
        message = f"{bad_line.format_message().rstrip('.')}{hint} (see {command} --help)"
        code = UsageError.exit_code
    elif isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        message = f"{where}{error.strerror}"
    elif isinstance(error, MemoryError):
        message = "out of memory"
    elif place := plugin_line(error):
        message = f"plugin {place}: {type(error).__name__}: {message}"
        code = UsageError.exit_code
    else:
        hint = "a bug in mmgem; set MMGEM_DEBUG=1 for the traceback"
        message, code = f"{type(error).__name__}: {message} ({hint})", _INTERNAL
    note(f"error: {' '.join(message.split())}")
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # it is what is full: Python would say so once more, in its own way
        _discard_output()
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as a line; the libraries' are for developers."""
    if f"{os.sep}mmgem{os.sep}" in filename:
        note(f"warning: {' '.join(str(message).split())}")


def _let_any_text_through() -> None:
    """Write file names that are not valid text as the bytes they are, and what the encoding of the terminal
    lacks as escapes, rather than to die midway."""
    codecs.register_error("mmgem.escape", _escape)
    for stream, errors in ((sys.stdout, "mmgem.escape"), (sys.stderr, "backslashreplace")):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes that a surrogate of a file name stands for; of any other character a backslash escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = [
        bytes([ord(char) - 0xDC00])
        if "\udc80" <= char <= "\udcff"
        else char.encode("ascii", "backslashreplace")
        for char in error.object[error.start : error.end]
    ]
    return b"".join(written), error.end


def _discard_output() -> None:
    """Nobody reads standard output any more: keep the interpreter from failing when it flushes it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
