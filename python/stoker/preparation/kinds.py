"""What sources are: text or finetuning data, by their first rows, and token ids of which tokenizer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stoker.index import read_tokenizer
from stoker.preparation.rules import check_names, find_form
from stoker.preparation.sources import BadRowError, Part, Piece, Row, read_rows
from stoker.preparation.tokenizer import TextTokenizer


def find_kind(parts: Sequence[Part], sources: Sequence[str], columns: Mapping[str, str] | None) -> str:
    """ "finetuning", where the first row of any source is that, else "text".

    Args:
        parts: Of all sources.
        sources: Their paths.
        columns: As in `Rules`.

    Raises:
        BadRowError: All rows are bad; the first of their errors.
        ValueError: The columns of a first row are of no form, or see `check_first_rows`.
    """
    rows = check_first_rows(parts, sources, columns)
    as_named = find_form(columns.values(), columns) if columns else None
    forms = [find_form(row.values, columns or {}) or as_named for row in rows]
    if None in forms:
        first = rows[forms.index(None)]
        raise ValueError(
            f"{first.where} has the columns {', '.join(first.values)}: say which of them is the text, or prompt and "
            'response, by columns={"text": NAME} or {"prompt": NAME, "response": NAME}, or name a preset.'
        )
    return "finetuning" if any(form is not None and form.kind == "finetuning" for form in forms) else "text"


def check_first_rows(parts: Sequence[Part], sources: Sequence[str], columns: Mapping[str, str] | None) -> list[Row]:
    """The first rows of all sources.

    Args:
        parts, sources, columns: As `find_kind` takes them.

    Raises:
        BadRowError: All rows are bad; the first of their errors.
        ValueError: There is no row, or the first one of no source has any of the columns, or see `check_names`.
    """
    check_names(columns or {})
    found = list(_first_rows(parts, sources))
    rows = [row for row in found if isinstance(row, Row)]
    if not rows:
        raise next((error for error in found if isinstance(error, BadRowError)), ValueError("the sources have no row."))
    if columns and not any(column in row.values for row in rows for column in columns.values()):
        raise ValueError(
            f"columns names {', '.join(columns.values())}, but the first row of no source has any of them: "
            f"{rows[0].where} has {', '.join(rows[0].values)}."
        )
    return rows


def check_tokenizers(parts: Sequence[Part], tokenizer: TextTokenizer) -> None:
    """
    Raises:
        ValueError: A source has token ids that another tokenizer made, as its index tells.
    """
    for path in dict.fromkeys(piece.path for part in parts for piece in part if piece.format == "mds"):
        made_by = read_tokenizer(path)
        if made_by is not None and made_by.sha256 != tokenizer.sha256:
            raise ValueError(
                f"{path} lists token ids of another tokenizer, with a vocabulary of {made_by.vocab_size:,}: give the "
                "one that they were made with."
            )


def _first_rows(parts: Sequence[Part], sources: Sequence[str]) -> Iterator[Row | BadRowError]:
    """The first row of each source that has one. Of each piece without any, its first error."""
    roots = {os.path.abspath(source) for source in sources}
    seen = set()
    for piece in itertools.chain.from_iterable(parts):
        ways = (piece.path, *map(str, Path(piece.path).parents))
        source = next((way for way in ways if way in roots), piece.path)
        if source in seen:
            continue
        if (row := _first_row(piece)) is not None:
            yield row
            if isinstance(row, Row):
                seen.add(source)


def _first_row(piece: Piece) -> Row | BadRowError | None:
    """The first one that is not bad, else the first error, if there is any."""
    first = None
    try:
        for row in read_rows(piece):
            first = first or row
            if isinstance(row, Row):
                return row
    except BadRowError as error:
        return first or error
    return first
