"""Commands that ask and change nothing: recommendations, likeness, SQL. They know nothing of how answers are found."""

import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from flows.commands.terminal import Json, make_console, open_resources, write_json
from tasks.domain.errors import InputError

Length = Annotated[int, typer.Option("-k", "--length", min=1, max=500, help="How many items.")]


def recommend(
    user: Annotated[str | None, typer.Option(help="Id of a user.")] = None,
    text: Annotated[str | None, typer.Option(help="What somebody is looking for, in their words.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="Id of an item that somebody likes; may be repeated.")] = None,
    k: Length = 10,
    category: Annotated[
        list[str] | None, typer.Option(help="Only items of this category; may be repeated, for any of several.")
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="How much being unlike the items above counts against the score.")
    ] = 0.0,
    method: Annotated[
        Literal["fused", "neighbours"],
        typer.Option(help="How a user's score is made: the learned vectors, or the neighbours of what they liked."),
    ] = "fused",
    explain: Annotated[bool, typer.Option("--explain", help="Say why, in parts that add up to the score.")] = False,
    as_json: Json = False,
) -> None:
    """Recommend to a user, to somebody known by a text, or to somebody who likes some items.

    \b
    nearline recommend --user 42 --explain
    nearline recommend --user 42 --explain --method neighbours
    nearline recommend --text "a quiet film about the sea"
    nearline recommend --like 50 --like 172 -k 5
    """
    from tasks.domain.online import SlateRequest
    from tasks.recommend import answer

    if sum(value is not None for value in (user, text, like or None)) != 1:
        raise InputError("A recommendation needs one of --user, --text and --like. See: nearline recommend --help")
    if user is None and method != "fused":
        raise InputError(f"--method {method} was asked for without --user. Only a user has a history: name one.")
    resources, _ = open_resources()
    request = SlateRequest(
        user_id=user,
        text=text,
        liked=tuple(like or ()),
        k=k,
        categories=tuple(category or ()),
        diversity=diversity,
        explain=explain,
        method=method,
    )
    _show_slate(answer(resources, request), as_json)


def similar(
    item: Annotated[str, typer.Argument(help="Id of an item.")],
    by: Annotated[
        Literal["factors", "text", "both"],
        typer.Option(help="What is compared: who likes them, what they say, or both."),
    ] = "factors",
    k: Length = 10,
    as_json: Json = False,
) -> None:
    """Items that are most like one item, by who likes them or by what they say."""
    from tasks.similar import similar_items

    resources, _ = open_resources()
    _show_slate(similar_items(resources, item, k=k, by=by), as_json)


def similar_users(
    user: Annotated[str, typer.Argument(help="Id of a user.")], k: Length = 10, as_json: Json = False
) -> None:
    """Users who are most like one user, and what both liked."""
    from flows.display import similar_users_table
    from tasks.similar import similar_users as find_similar

    resources, _ = open_resources()
    found = find_similar(resources, user, k=k)
    if as_json:
        write_json(asdict(found))
        return
    if found.users:
        make_console().print(similar_users_table(found))
    if found.note:
        make_console().print(found.note, style="dim", markup=False)


def sql(
    query: Annotated[str, typer.Argument(help="A query in DuckDB's SQL; tables are in docs/data-dictionary.md.")],
    limit: Annotated[int, typer.Option(min=1, help="Rows that are shown as a table.")] = 50,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, all rows.")] = False,
) -> None:
    """Ask the warehouse, read-only; flows may run meanwhile.

    \b
    nearline sql "from mart_recommendations where user_id = '42' order by rank"
    nearline sql "select reason, count(*) from quarantine group by all" --csv
    """
    from flows.rows import print_csv, print_json, print_table

    resources, _ = open_resources()
    with resources.warehouse(read_only=True) as warehouse:
        rows = warehouse.read(query)
    if as_json:
        print_json(rows, sys.stdout)
    elif as_csv:
        print_csv(rows, sys.stdout)
    else:
        print_table(rows, limit, make_console())


def _show_slate(slate: Any, as_json: bool) -> None:
    from flows.display import slate_table

    if as_json:
        write_json(asdict(slate))
        return
    make_console().print(slate_table(slate))
    if slate.note:
        make_console().print(slate.note, style="dim", markup=False)
