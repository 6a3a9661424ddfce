"""Everything that requests ask for, in one resident object: rows go in, answers come out of memory.

It knows nothing of HTTP. Many threads may call it at once; an answer is all of one version.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tasks.domain.errors import IndexUnavailableError, NearlineError, NotFoundError, OverloadedError, SettingsError
from tasks.domain.fold_in import load_kernels
from tasks.domain.online import (
    BelievedProfile,
    ErasureReceipt,
    Health,
    IntakeKind,
    IntakeReceipt,
    SlateRequest,
)
from tasks.domain.ports import Resources, TextEncoder
from tasks.domain.records import Likeness, Slate, UserPayload
from tasks.intake import Intake
from tasks.online.answers import latest, popular, recommend, similar
from tasks.online.beliefs import believe
from tasks.online.folding import FoldedUser, Folder
from tasks.online.follower import Follower, Live
from tasks.online.histories import HistoryCache
from tasks.online.problems import (
    following_failed,
    index_away,
    intake_overloaded,
    nothing_published,
    refresh_stalled,
)
from tasks.online.state import UserView

Floats = npt.NDArray[np.float32]
WARM_AFTER_SECONDS = 10.0
"""The encoder is loaded so long after the start, so that the first free text need not wait for it, and the start need
not either."""
OVERLOAD_SECONDS = 10.0
"""How long the intake is called overloaded after it last refused rows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnlineOptions:
    """The settings of the same names; ``wait_seconds`` is how long a request waits for its user's newest events to be
    folded in, and ``stalled_after_seconds`` is of the refresh."""

    commit_seconds: float = 0.1
    max_waiting_rows: int = 20_000
    follow_seconds: float = 1.0
    history_megabytes: float = 512
    request_timeout_seconds: float = 30.0
    wait_seconds: float = 5.0
    stalled_after_seconds: float = 60.0


class OnlineService:
    """A context manager; inside it, intake and follower run. Before the first publication rows are taken and nothing
    else is answered."""

    def __init__(self, resources: Resources, options: OnlineOptions, clock: Callable[[], datetime]) -> None:
        self._resources = resources
        self._options = options
        self._clock = clock
        self._stack = ExitStack()
        self._encoder: TextEncoder | None = None
        self._overloaded_at = -OVERLOAD_SECONDS
        self._ended = threading.Event()

    def __enter__(self) -> "OnlineService":
        with ExitStack() as stack:
            warehouse = stack.enter_context(self._resources.warehouse(read_only=True))
            engine = stack.enter_context(self._resources.engine())
            histories = HistoryCache(warehouse, self._options.history_megabytes)
            self._folder = Folder(warehouse, engine, histories, lambda: self._encoder)
            seconds = self._options.follow_seconds
            self._follower = Follower(self._resources, warehouse, self._folder, self._clock, seconds)
            stack.callback(self._follower.close)
            self._follower.start()
            self._intake = stack.enter_context(
                Intake(
                    self._resources,
                    clock=self._clock,
                    commit_seconds=self._options.commit_seconds,
                    max_waiting_rows=self._options.max_waiting_rows,
                    on_commit=self._follower.take_commit,
                )
            )
            stack.callback(self._ended.set)
            threading.Thread(target=self._warm, name="online-warm", daemon=True).start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def accept(self, kind: IntakeKind, rows: Sequence[Mapping[str, object]], *, source: str) -> IntakeReceipt:
        """Take rows; they are durable when it returns, and in the next answer for the users they name.

        Raises OverloadedError if too many rows wait, InputError if these are no list of objects.
        """
        try:
            seconds = self._options.request_timeout_seconds
            return self._intake.accept(kind, rows, source=source, timeout_seconds=seconds)
        except OverloadedError:
            self._overloaded_at = time.monotonic()
            raise

    def recommend(self, request: SlateRequest) -> Slate:
        """A slate for whatever is known; see ``tasks.online.answers.recommend``.

        Raises InputError, NotFoundError for unknown items or before the first publication.
        """
        live = self._serving()
        user = None if request.user_id is None else self._view(live, request.user_id)
        return recommend(live.state, request, user, lambda text: self._embed(live, text))

    def similar(self, item_id: str, *, k: int = 10, by: Likeness = "factors") -> Slate:
        """Items that are like one. Raises NotFoundError for an item that the serving version does not know."""
        return similar(self._serving().state, item_id, k=k, by=by)

    def popular(self, request: SlateRequest) -> Slate:
        """What most people like; of the request its length and its filters count."""
        return popular(self._serving().state, request)

    def latest(self, request: SlateRequest) -> Slate:
        """What came into the catalog last; of the request its length and its filters count."""
        return latest(self._serving().state, request)

    def profile(self, user_id: str) -> BelievedProfile:
        """What is believed of a user, and from what. Raises NotFoundError for one of whom nothing is known."""
        live = self._serving()
        user = self._view(live, user_id)
        if user is None:
            raise NotFoundError(
                "The profile of a user was asked for, and nothing is known of them: no event, no attribute."
                " Check the id; it is the one that their events have."
            )
        return believe(live.state, user, self._clock())

    def erase(self, user_id: str) -> ErasureReceipt:
        """Remove a person, here and in the warehouse. Raises as ``tasks.erase.erase_user``."""
        from tasks.erase import erase_user

        receipt = erase_user(self._resources, user_id, now=self._clock())
        self._folder.histories.forget([user_id])
        self._folder.forget_texts()
        if (live := self._follower.live) is not None:
            live.pending.forget(user_id)
            if self._resources.serves_from_memory:
                live.state.index.delete_users([user_id])
        return receipt

    def health(self) -> Health:
        """Whether requests are answered, and what is not whole, the watchdog's findings with it. It asks nobody."""
        live = self._follower.live
        _, n_waiting, oldest = live.pending.sizes() if live else (0, 0, None)
        answer, waited = self._follower.watch.answer, self._age(oldest)
        named = (
            nothing_published(live is not None, self._follower.problem),
            index_away(answer.problem, live is not None),
            following_failed(self._follower.problem or (live.pending.counts.problem if live else None)),
            refresh_stalled(waited) if waited > self._options.stalled_after_seconds else None,
            intake_overloaded() if time.monotonic() - self._overloaded_at < OVERLOAD_SECONDS else None,
        )
        found = self._resources.watchdog_findings(self._clock())
        problems = (*(problem for problem in named if problem is not None), *found)
        return Health(
            state="unavailable" if live is None else "degraded" if problems else "ready",
            version=live.version if live else None,
            problems=problems,
            watermark=live.progress.watermark if live else None,
            n_waiting_events=n_waiting,
            oldest_waiting_seconds=waited,
            index=f"does not answer: {answer.problem}" if answer.problem else "answers",
        )

    def stats(self) -> Mapping[str, float]:
        """Gauges by name, from memory."""
        live, follower = self._follower.live, self._follower
        own = {
            "intake_waiting_rows": float(self._intake.n_waiting_rows),
            "history_bytes": float(self._folder.histories.n_bytes),
            "followed_snapshot": float(follower.snapshot),
        }
        if live is None:
            return own
        n_users, n_waiting, oldest = live.pending.sizes()
        counts = live.pending.counts
        return own | {
            "pending_users": float(n_users),
            "waiting_events": float(n_waiting),
            "oldest_waiting_seconds": self._age(oldest),
            "watermark": float(live.progress.watermark),
            "version_age_seconds": (self._clock() - live.loaded_at).total_seconds(),
            "folds": float(counts.n_folds),
            "folded_users": float(counts.n_users),
            "fold_seconds": counts.seconds,
            "items": float(len(live.state.payloads)),
            "users": float(live.n_users),
        }

    def _serving(self) -> Live:
        live = self._follower.live
        if live is None:
            raise NotFoundError(
                "Something was asked of the serving version, and none is loaded: nothing is published yet, or the"
                " warehouse could not be read. GET /v1/health says which; `nearline run daily_batch` publishes one."
            )
        return live

    def _view(self, live: Live, user_id: str) -> UserView | None:
        """What is known of a user now; None if that is nothing."""
        pending = live.pending.look(user_id, self._options.wait_seconds)
        if pending is not None and pending.folded is not None:
            watermark, stale = live.progress.watermark, self._age(pending.oldest_missing)
            return self._view_of(live, user_id, pending.folded, watermark, pending.n_events, stale)
        stale = self._age(pending.oldest_missing) if pending else 0.0
        try:
            stored = live.state.index.users(live.version, [user_id]).get(user_id)
        except IndexUnavailableError:
            folded = self._folder.fold(live.state, live.catalog, [user_id]).get(user_id)
            if folded is None:
                return None
            return self._view_of(live, user_id, folded, self._follower.snapshot, 0, stale)
        if stored is not None:
            known = self._stored(live, *stored)
            return self._view_of(live, user_id, known, stored[0].as_of_snapshot, 0, stale)
        if pending is not None:
            return self._view_of(live, user_id, _nothing_yet(live), live.progress.watermark, 0, stale)
        return None

    def _stored(self, live: Live, payload: UserPayload, query: Floats) -> FoldedUser:
        """As the index has it; versions from before it was known do not say what a user has met."""
        seen = frozenset(payload.seen)
        if payload.n_history and not seen:
            met = self._folder.history(live.state.model, live.catalog, payload.user_id)
            seen = frozenset(met.interactions["item_id"].to_pylist())
        return FoldedUser(query, payload.alpha, payload.beta, payload.n_history, seen, None)

    def _view_of(
        self, live: Live, user_id: str, known: FoldedUser, as_of_snapshot: int, n_pending: int, stale_seconds: float
    ) -> UserView:
        model = live.state.model
        return UserView(
            user_id=user_id,
            query=known.query,
            alpha=known.alpha,
            beta=known.beta,
            n_history=known.n_history,
            seen=known.seen,
            as_of_snapshot=as_of_snapshot,
            n_pending_events=n_pending,
            stale_seconds=stale_seconds,
            load_history=lambda: self._folder.history(model, live.catalog, user_id),
            load_embeddings=lambda content_hashes: self._folder.embeddings(model, content_hashes),
        )

    def _warm(self) -> None:
        """Load what the first fold needs now, and the encoder a little later, unless a request has done so already; one
        that cannot be had is that request's trouble."""
        load_kernels()
        if self._ended.wait(WARM_AFTER_SECONDS) or self._encoder is not None:
            return
        try:
            encoder = self._resources.encoder()
            encoder.encode(["warm"])
        except NearlineError as error:
            logger.warning("the encoder was not loaded: error=%s", type(error).__name__)
            return
        self._encoder = encoder

    def _embed(self, live: Live, text: str) -> Floats:
        """A text as (text_width,); the encoder is loaded by the first one."""
        encoder = self._encoder or self._resources.encoder()
        if encoder.encoder_id != live.state.model.encoder_id:
            raise SettingsError(
                f"A slate for a text was asked for. The serving version {live.version} was made with the encoder"
                f" {live.state.model.encoder_id!r}, and the settings name {encoder.encoder_id!r}: their vectors cannot"
                " be compared. Set the encoder back, or run `nearline run daily_batch` to publish a version of the new"
                " one."
            )
        vector: Floats = encoder.encode_queries([text])[0]
        self._encoder = encoder
        return vector

    def _age(self, since: float | None) -> float:
        return 0.0 if since is None else max(0.0, self._clock().timestamp() - since)


def _nothing_yet(live: Live) -> FoldedUser:
    """Somebody who has just come, and whose first events are not folded yet: the prior speaks alone."""
    model, fusion = live.state.model, live.state.model.recipe.fusion
    query = np.zeros(model.text_width + model.n_factors + 1, np.float32)
    query[-1] = fusion.buckets[0].beta / fusion.prior_block
    return FoldedUser(query, fusion.buckets[0].alpha, fusion.buckets[0].beta, 0, frozenset(), None)
