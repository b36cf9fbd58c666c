"""Models on the Hugging Face hub: the front matter of their cards, and the upload.

A model there is its folder, as it lies on a disk; :func:`mmgem.checkpoints.resolve.resolve` fetches it.
"""

from __future__ import annotations

from pathlib import Path

from mmgem.errors import UsageError
from mmgem.models.network import MMGEMNetwork
from mmgem.utils.model_files import read_text_file

# What the hub's pages offer to do with a model.
_IMAGE_TASK, _TEXT_TASK = "zero-shot-image-classification", "sentence-similarity"


def read_card(folder: Path) -> str:
    """The card of a model folder; empty if it has none. Raises ``CheckpointError`` if it is no text file."""
    path = folder / "README.md"
    return read_text_file(path) if path.exists() else ""


def with_front_matter(card: str, network: MMGEMNetwork, licence: str | None = None) -> str:
    """``card`` with the fields the hub reads: ``library_name``, ``pipeline_tag`` and, if one is known,
    ``license``. What the card says already stands, but for a ``licence`` that is given.

    Raises ``UsageError`` for front matter that is not YAML.
    """
    from huggingface_hub import ModelCard

    has_encoder = bool(network.encoder.channels)
    if not card.startswith("---"):
        card = f"---\nlibrary_name: mmgem\n---\n{card or '# An mmgem model'}\n"
    try:
        model_card = ModelCard(card)
    except Exception as error:  # YAML's own among them
        raise UsageError(f"the card's front matter cannot be read: {str(error).splitlines()[0]}") from error
    data = model_card.data
    data.library_name = data.library_name or "mmgem"
    data.pipeline_tag = data.pipeline_tag or (_IMAGE_TASK if has_encoder else _TEXT_TASK)
    data.license = licence or data.license
    return str(model_card)


def upload(folder: Path, repo: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload a model folder to the hub as ``repo``, made if it is not there; returns the commit's address.

    Raises ``UsageError`` if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="mmgem")
    try:
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        return str(
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an mmgem model")
        )
    except Exception as error:  # its own, and those of whichever HTTP library is beneath it
        raise UsageError(f"{repo}: not uploaded: {str(error).strip().splitlines()[0]}") from error
