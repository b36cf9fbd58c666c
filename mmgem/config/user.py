"""What a person has chosen once for all commands: ``~/.config/mmgem/config.toml``.

The command line comes first, then this file, then the defaults.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmgem.config.checks import check_ranges
from mmgem.config.convert import from_dict
from mmgem.config.fields import setting
from mmgem.errors import ConfigError, DataError, UsageError
from mmgem.utils.files import user_config_file
from mmgem.utils.text_files import read_text


@dataclass
class UserConfig:
    """Defaults of the command line; what is None is as the commands say."""

    index: str | None = setting(None, help="The index of commands that are given none.")
    model: str | None = setting(None, help="The model, where it is not an index that has one.")
    device: str | None = setting(None, help="Where models run: `cpu`, `cuda`, `cuda:1`, `mps`.")
    precision: Literal["float32", "bfloat16"] | None = setting(None, help="What models compute in.")
    k: int | None = setting(None, help="How many photos a search lists.", low=1)
    preview: bool | None = setting(None, help="Whether a search shows the photos in the terminal.")


def load_user_config() -> UserConfig:
    """What the file says; nothing if it is not there. Raises ``ConfigError`` naming the file and the key."""
    path = user_config_file()
    if not path.is_file():
        return UserConfig()
    try:
        config = from_dict(UserConfig, tomllib.loads(read_text(path)))
        check_ranges(config)
    except (UsageError, DataError, tomllib.TOMLDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    for name in ("index", "model"):
        value = getattr(config, name)
        if value is not None and value.startswith("~"):
            setattr(config, name, str(Path(value).expanduser()))
    return config
