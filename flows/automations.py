"""The automations of ``flows/automations.yml`` on a Prefect server. Prefect's environment must be prepared before this
module is imported. It knows nothing of who is notified, beyond the name of the block.
"""

from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from tasks.domain.errors import InputError, NotFoundError, TransientError

FILE = Path(__file__).with_name("automations.yml")
PLACE = "NOTIFICATION_BLOCK_ID"


def automations_text(block: str) -> str:
    """The file with the id of a notification block in its place, for ``prefect automation create --from-file``.

    ``block`` is the type and the name, such as ``slack-webhook/operators``. Raises as ``apply_automations``.
    """
    with get_client(sync_client=True) as client:
        return FILE.read_text().replace(PLACE, _block_id(client, block))


def apply_automations(block: str) -> list[str]:
    """Make the automations, or change those of the same names; returns the names.

    Raises InputError for a block that is no notification, NotFoundError if there is no such block, TransientError if
    the server does not answer.
    """
    names = []
    for document in yaml.safe_load(automations_text(block))["automations"]:
        wanted = AutomationCore.model_validate(document)
        with get_client(sync_client=True) as client:
            known = client.read_automations_by_name(wanted.name)
            if known:
                client.update_automation(known[0].id, wanted)
            else:
                client.create_automation(wanted)
        names.append(wanted.name)
    return names


def _block_id(client: SyncPrefectClient, block: str) -> str:
    kind, _, name = block.partition("/")
    if not kind or not name:
        raise InputError(
            f"{block!r} names no notification block: give its type and its name, such as slack-webhook/operators."
        )
    try:
        document = client.read_block_document_by_name(name, kind, include_secrets=False)
    except (ObjectNotFound, PrefectHTTPStatusError):
        raise NotFoundError(f"The server has no block {block!r}. {_known(client)}") from None
    except httpx.HTTPError as error:
        raise TransientError(
            f"The Prefect server at {client.api_url} does not answer ({type(error).__name__}). See whether it runs."
        ) from None
    if "notify" not in _capabilities(document):
        raise InputError(f"The block {block!r} sends no notifications. {_known(client)}")
    return str(document.id)


def _known(client: SyncPrefectClient) -> str:
    blocks = [block for block in client.read_block_documents(limit=200) if "notify" in _capabilities(block)]
    named = sorted(f"{block.block_type.slug}/{block.name}" for block in blocks if block.block_type)
    return f"It has these: {', '.join(named) or 'none'}. docs/operations.md says how to make one."


def _capabilities(block: Any) -> list[str]:
    return list(block.block_schema.capabilities) if block.block_schema else []
