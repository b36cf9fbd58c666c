"""What a person's own config file changes in the commands' defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmgem.utils.files import user_config_file

if TYPE_CHECKING:
    from mmgem.config.user import UserConfig

_PACKAGED = "tiny"
_LISTING = (("search",), ("store", "search"))  # commands whose -k counts photos


def default_map(command: Any, asked: list[str]) -> dict[str, Any] | None:
    """The defaults of a command and those below it by the user's config, in the form of click's
    ``default_map``; None without such a file, or if only help is ``asked`` for. Raises ConfigError."""
    if not user_config_file().is_file() or {"--help", "-h", "--version"} & set(asked):
        return None
    from mmgem.config.user import load_user_config

    return _defaults(command, load_user_config(), ())


def _defaults(command: Any, config: UserConfig, path: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    params = {param.name: param for param in command.params}
    if "model" in params and params["model"].default == _PACKAGED:
        values["model"] = config.model
    if {"device", "precision"} <= params.keys():
        values |= {"device": config.device, "precision": config.precision}
    if path in _LISTING:
        values["k"] = config.k
    if "preview" in params:
        values["preview"] = config.preview
    chosen = {name: value for name, value in values.items() if value is not None}
    for name, below in getattr(command, "commands", {}).items():
        chosen[name] = _defaults(below, config, (*path, name))
    return chosen
