"""Tables and lines for a terminal. It computes nothing, and treats titles and ids as text, never as markup."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from tasks.domain.errors import NearlineError
from tasks.domain.explanations import phrase_reasons, phrase_shared
from tasks.domain.online import RemovedRows
from tasks.domain.records import Receipt, Recommendation, SimilarUsers, Slate
from tasks.progress import StageEvent, watch_stages

SPLITS = {"user_tail": "each user's last 20 %", "global_time": "the last 20 % of time"}


def slate_table(slate: Slate) -> Table:
    """A slate with the parts of every score and, where it was explained, its reasons."""
    by_neighbours = slate.source == "neighbours"
    served = f"from {slate.source.replace('_', ' ')}"
    served += "" if by_neighbours else f", alpha {slate.alpha:.2f}, beta {slate.beta:.2f}"
    table = Table(title=f"slate {served}, version {slate.version}", title_justify="left", title_style="dim", box=None)
    table.add_column("#", justify="right", style="dim")
    table.add_column("item", ratio=3)
    for name in ("score",) if by_neighbours else ("score", "text", "behaviour", "prior"):
        table.add_column(name, justify="right")
    explained = any(item.because for item in slate.items)
    if explained:
        table.add_column("why", ratio=4, style="dim")
    for item in slate.items:
        parts = (item.score,) if by_neighbours else (item.score, item.text_part, item.factors_part, item.prior_part)
        why = [Text(phrase_reasons(item))] if explained else []
        table.add_row(str(item.rank), Text(item.title), *(f"{part:.3f}" for part in parts), *why)
    return table


def erasure_table(places: Sequence[RemovedRows]) -> Table:
    """What was removed of a user, and what is there now; places that never held anything are left out."""
    table = Table("place", box=None, header_style="dim")
    for name in ("removed", "left"):
        table.add_column(name, justify="right")
    for place in places:
        if place.n_removed or place.n_left:
            style = "red" if place.n_left else ""
            table.add_row(place.place, f"{place.n_removed:,}", Text(f"{place.n_left:,}", style=style))
    if not table.row_count:
        table.add_row("nothing is stored of this user", "0", "0")
    return table


def similar_users_table(found: SimilarUsers) -> Table:
    """Who is like a user, how much, and what both liked."""
    title = f"users like {found.user_id}, by their {found.by}, version {found.version}"
    table = Table(title=Text(title), title_justify="left", title_style="dim", box=None)
    table.add_column("#", justify="right", style="dim")
    table.add_column("user")
    table.add_column("likeness", justify="right")
    table.add_column("why", ratio=1, style="dim")
    for user in found.users:
        table.add_row(str(user.rank), Text(user.user_id), f"{user.similarity:.3f}", Text(phrase_shared(user)))
    return table


def reason_table(item: Recommendation) -> Table:
    """Everything behind one score, line by line, with the sum."""
    table = Table(box=None, header_style="dim", show_footer=True)
    table.add_column(Text(f"why {item.title}"), footer="the score")
    table.add_column("adds", footer=f"{item.score:.4f}", justify="right")
    table.add_column("share", footer="100%", justify="right")
    reasons = [(because.label, because.contribution) for because in item.because]
    for label, value in (*reasons, ("its popularity", item.prior_part)):
        table.add_row(Text(label), f"{value:.4f}", f"{value / item.score:.0%}")
    return table


def quality_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One metric of every policy on every split; the best of a split is bold."""
    table = Table(box=None, header_style="dim")
    for name, justify in (("held out", "left"), ("policy", "left"), ("NDCG@10", "right"), ("95 %", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("users", justify="right")
    best: dict[str, float] = {}
    for row in rows:
        best[row["split"]] = max(best.get(row["split"], 0.0), row["value"])
    for row in rows:
        style = "bold green" if row["value"] == best[row["split"]] else ""
        interval = f"{row['ci_low']:.4f} to {row['ci_high']:.4f}"
        split = SPLITS.get(row["split"], row["split"])
        table.add_row(split, row["policy"], f"{row['value']:.4f}", interval, f"{row['n_users']:,}", style=style)
    return table


def receipt_line(receipt: Receipt) -> Text:
    """What a stage did, on one line."""
    done = "unchanged, re-used" if receipt.reused else f"{receipt.n_in:,} in, {receipt.n_out:,} out"
    line = Text(f"  {receipt.stage:<22} {done:<30} {receipt.seconds:6.1f} s")
    return line.append(f"  {receipt.note}", style="dim") if receipt.note else line


def watched_line(name: str, result: Receipt | NearlineError) -> Text:
    """What became of one file of a watched folder, on one line (an error may have more)."""
    if isinstance(result, NearlineError):
        return Text(f"  {name}: {result}", style="red")
    done = "taken before" if result.reused else f"{result.n_in:,} rows, {result.n_out:,} taken"
    line = Text(f"  {name}: {done}, {result.seconds:.1f} s")
    return line.append(f"  {result.note}", style="dim") if result.note else line


@contextmanager
def stage_lines(console: Console) -> Iterator[None]:
    """Say what the stages of a run do while they do it: one line for each that ended, and the one at work below."""
    with console.status("starting") as status, watch_stages(lambda event: _show_stage(console, status, event)):
        yield


def _show_stage(console: Console, status: Status, event: StageEvent) -> None:
    if event.kind == "started":
        status.update(Text(event.stage))
    elif event.kind == "progress":
        if event.note:
            console.print(Text(f"    {event.note}", style="dim"), soft_wrap=True)
        status.update(Text(f"{event.stage}: {event.done:,} of {event.total:,}"))
    elif event.kind == "failed":
        console.print(Text(f"  {event.stage:<22} failed {event.seconds:>30.1f} s", style="red"))
    elif event.receipts:
        for receipt in event.receipts:
            console.print(receipt_line(receipt))
    else:
        console.print(Text(f"  {event.stage:<22} {'done':<30} {event.seconds:6.1f} s"))
