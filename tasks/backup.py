"""What a restored home must be told that its backup does not know: people who were removed since. It knows nothing of
files."""

import logging
from collections.abc import Collection
from datetime import datetime

from tasks.domain.online import ErasureReceipt
from tasks.domain.ports import Resources
from tasks.erase import erase_user, tables_of_users

logger = logging.getLogger(__name__)


def repeat_erasures(resources: Resources, pseudonyms: Collection[str], *, now: datetime) -> tuple[ErasureReceipt, ...]:
    """Erase everybody in the warehouse whose pseudonym in this home is one of ``pseudonyms``.

    A pseudonym that nobody has is left out: the backup did not hold that person. Raises as ``erase_user``; then it is
    to be run again.
    """
    if not pseudonyms:
        return ()
    with resources.warehouse(read_only=True) as warehouse:
        named = " union ".join(f'select user_id from "{table}"' for table in tables_of_users())  # noqa: S608 - contracts
        user_ids = warehouse.read(f"select user_id from ({named}) where user_id is not null order by user_id")  # noqa: S608
    erased = [user for user in user_ids["user_id"].to_pylist() if resources.pseudonym(user) in pseudonyms]
    receipts = tuple(erase_user(resources, user, now=now) for user in erased)
    logger.info("erasures repeated after a restore: asked=%d found=%d", len(pseudonyms), len(receipts))
    return receipts
