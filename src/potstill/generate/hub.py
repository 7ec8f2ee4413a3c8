"""The dataset folder on the Hugging Face hub, as a dataset repository."""

from __future__ import annotations

from pydantic import SecretStr

from potstill.errors import InputError, KeyRefusedError, MachineError
from potstill.workspace import Workspace

PUSHED = ("README.md", "manifest.json", "train.jsonl", "validation.jsonl", "test.jsonl")
"""What is pushed: not what was sifted out, and no exports."""


def push(workspace: Workspace, name: str, token: SecretStr | None, *, endpoint: str | None = None) -> str:
    """Push the dataset to a private repository `owner/name`, which is made where there is none; gives its address.

    `endpoint`: another hub than huggingface.co, or than HF_ENDPOINT names.

    Raises KeyRefusedError without a token or with one that the hub refuses, InputError where there is no dataset,
    MachineError where the hub cannot be reached or its library is missing.
    """
    if token is None:
        message = "no hub token: set HF_TOKEN in the environment"
        raise KeyRefusedError(message, hint="make one with write access at huggingface.co/settings/tokens")
    if not workspace.dataset_manifest.is_file():
        message = f"no dataset to push: {workspace.dataset_manifest} is missing"
        raise InputError(message)
    try:
        from httpx2 import HTTPError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        message = "pushing needs huggingface-hub"
        raise MachineError(message, hint="pip install 'potstill[hub]'") from error
    api = HfApi(endpoint=endpoint, token=token.get_secret_value())
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=workspace.dataset,
            allow_patterns=list(PUSHED),
            commit_message="Dataset made by potstill",
        )
    except HFValidationError as error:
        message = f"generate.push: {error}"
        hint = "the dataset is whole on this machine; `potstill generate --offline --push OWNER/NAME` tries again"
        raise InputError(message, hint=hint) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        message = f"the hub refused the push to {name}: status {status}"
        if status in (401, 403):
            raise KeyRefusedError(message, hint="HF_TOKEN needs write access to that owner") from None
        raise MachineError(message, hint="the dataset is whole on this machine; push again later") from None
    except (HTTPError, OSError) as error:
        message = f"the hub cannot be reached: {type(error).__name__}"
        hint = "the dataset is whole on this machine; `potstill generate --offline --push ...` tries again"
        raise MachineError(message, hint=hint) from None
    return f"{api.endpoint}/datasets/{name}"
