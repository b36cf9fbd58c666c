"""``mmgem completion``: a script that makes a shell complete verbs and options, without starting Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer


@dataclass(frozen=True)
class _Verb:
    """A command: its words, those of the commands below it, and its options with what may follow each."""

    path: str
    help: str
    below: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    helps: dict[str, str]


def completion(
    context: typer.Context,
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")],
) -> None:
    """Print what makes a shell complete mmgem's verbs and options.

    In bash: source <(mmgem completion bash), in ~/.bashrc; in zsh the same, in ~/.zshrc after compinit; in
    fish: mmgem completion fish > ~/.config/fish/completions/mmgem.fish. All words are in it, so that a Tab
    costs nothing; make it again after an update.
    """
    verbs = list(_verbs(context.find_root().command, ""))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs), end="")


def _verbs(command: Any, path: str) -> Iterator[_Verb]:
    options: dict[str, tuple[str, ...]] = {}
    helps: dict[str, str] = {}
    for param in command.params:
        if param.param_type_name != "option" or getattr(param, "hidden", False):
            continue
        for name in param.opts:
            options[name] = _choices(param)
            helps[name] = (param.help or "").partition("\n")[0]
    options["--help"], helps["--help"] = (), "Show what it does."
    below = getattr(command, "commands", {})
    yield _Verb(path, command.short_help or "", tuple(below), options, helps)
    for name, inner in below.items():
        yield from _verbs(inner, f"{path} {name}".strip())


def _choices(param: Any) -> tuple[str, ...]:
    """What may follow an option, if that is one of few: as click has it, or typer's own form of it."""
    if (known := getattr(getattr(param, "type", None), "choices", None)) is not None:
        return tuple(known)
    annotation = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    literals = [annotation, *get_args(annotation)]
    return tuple(name for kind in literals if get_origin(kind) is Literal for name in get_args(kind))


def _find_names(verbs: list[_Verb], words: str) -> str:
    """Lines of bash and zsh alike that follow ``words`` to a verb and let ``names`` be what may come next:
    the choices of the option before, options, or the verbs below."""
    steps = "".join(
        f'            "{verb.path} {name}") verb="{f"{verb.path} {name}".strip()}" ;;\n'
        for verb in verbs
        for name in verb.below
    )
    choices = "".join(
        f'        "{verb.path}|{name}") names="{" ".join(values)}" ;;\n'
        for verb in verbs
        for name, values in verb.options.items()
        if values
    )
    cases = "".join(
        f'        "{verb.path}") options="{" ".join(verb.options)}" below="{" ".join(verb.below)}" ;;\n'
        for verb in verbs
    )
    return f"""\
    local verb="" word names="" options="" below=""
    for word in {words}; do
        case "$verb $word" in
{steps}        esac
    done
    case "$verb|$prev" in
{choices}    esac
    case "$verb" in
{cases}    esac
    if [[ -z $names && $cur == -* ]]; then names=$options; fi
    if [[ -z $names ]]; then names=$below; fi
"""


def _bash(verbs: list[_Verb]) -> str:
    return f"""\
_mmgem() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
{_find_names(verbs, '"${COMP_WORDS[@]:1:COMP_CWORD - 1}"')}\
    COMPREPLY=($(compgen -W "$names" -- "$cur"))
}}
complete -o default -F _mmgem mmgem
"""


def _zsh(verbs: list[_Verb]) -> str:
    return f"""\
#compdef mmgem
_mmgem() {{
    local cur=${{words[CURRENT]}} prev=${{words[CURRENT - 1]}}
{_find_names(verbs, "${words[2,CURRENT - 1]}")}\
    if [[ -z $names ]]; then _files; else compadd -- ${{=names}}; fi
}}
compdef _mmgem mmgem
"""


def _fish(verbs: list[_Verb]) -> str:
    groups = [verb.path for verb in verbs if verb.below and verb.path]
    lines = []
    for verb in verbs:
        *group, last = verb.path.split() or [""]
        if not verb.path:
            condition = "__fish_use_subcommand"
        elif group:
            condition = f"__fish_seen_subcommand_from {group[0]}; and __fish_seen_subcommand_from {last}"
        elif verb.below:
            inner = " ".join(verb.below)
            condition = f"__fish_seen_subcommand_from {last}; and not __fish_seen_subcommand_from {inner}"
        else:
            condition = f"__fish_seen_subcommand_from {last}"
            condition += f"; and not __fish_seen_subcommand_from {' '.join(groups)}" if groups else ""
        helps = {f"{verb.path} {name}".strip(): name for name in verb.below}
        for inner_verb in verbs:
            if inner_verb.path in helps:
                name, text = helps[inner_verb.path], shlex.quote(inner_verb.help)
                lines.append(f"complete -c mmgem -f -n '{condition}' -a {name} -d {text}")
        for name, values in verb.options.items():
            kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            arguments = f" -x -a {shlex.quote(' '.join(values))}" if values else ""
            text = shlex.quote(verb.helps[name])
            lines.append(f"complete -c mmgem -n '{condition}' {kind}{arguments} -d {text}")
    return "\n".join([*lines, ""])
