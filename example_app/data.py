"""The service's data, the same for the same size and seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import chain, count, islice
from random import Random
from typing import Any

from sqlalchemy import Engine, Table, insert

from example_app import tables

Row = dict[str, Any]
Rows = dict[Table, list[Row]]

# The user and the tags of the case.
USER_ID = 2
TAG_IDS = (303, 297, 500, 301)

_TOPICS = ("asyncio", "postgres", "typing", "testing", "docker", "caching", "sql", "http", "css", "vim", "git", "linux")
_VERBS = ("Understanding", "Debugging", "Measuring", "Shipping", "Rewriting", "Explaining", "Scaling", "Teaching")
_ENDINGS = ("in practice", "the hard way", "for the curious", "without tears", "at work", "from scratch", "in an hour")
_COLORS = ("#e4572e", "#29335c", "#f3a712", "#a8c686", "#669bbc", "#6b4e71")
_START = datetime(2024, 3, 1, 9, 0)  # noqa: DTZ001  # the columns are without time zone


@dataclass(frozen=True)
class Size:
    """
    How many rows each user has.

    `contents × tags × comments` is what the guilty mapping multiplies each article by.
    """

    contents: int
    tags: int
    comments: int
    articles: int
    users: int = 5

    @classmethod
    def of(cls, contents: int) -> "Size":
        """A user with that many contents, and a third as many of the rest, but at least the case's four tags."""
        third = max(len(TAG_IDS), contents // 3)
        return cls(contents=contents, tags=third, comments=third, articles=third)

    @property
    def rows_per_article(self) -> int:
        return self.contents * self.tags * self.comments


SIZES = {"small": Size.of(6), "case": Size.of(21), "large": Size.of(36)}


def refresh_token(user_id: int, seed: int) -> str:
    return sha256(f"{seed}/{user_id}".encode()).hexdigest()


def generate(size: Size, seed: int) -> Rows:
    """Rows for each table, in an order that foreign keys allow."""
    random = Random(seed)
    rows: Rows = {table: [] for table in tables.metadata.sorted_tables}
    free_tag_ids = (number for number in count(1) if number not in TAG_IDS)
    for user_id in range(1, size.users + 1):
        rows[tables.users].append(_user(user_id, seed))
        case_tag_ids = TAG_IDS if user_id == USER_ID else ()
        tag_ids = list(islice(chain(case_tag_ids, free_tag_ids), size.tags))
        rows[tables.tags] += [_tag(random, tag_id, user_id, number) for number, tag_id in enumerate(tag_ids)]
        _add_contents(random, rows, user_id, tag_ids, size)
        _add_articles(random, rows, user_id, tag_ids, size)
    return rows


def seed_database(engine: Engine, rows: Rows) -> Iterator[tuple[Table, int]]:
    """Insert the rows, and yield each table with its number of rows when it is filled."""
    for table, of_table in rows.items():
        with engine.begin() as connection:
            connection.execute(insert(table), of_table)
        yield table, len(of_table)


def _add_contents(random: Random, rows: Rows, user_id: int, tag_ids: list[int], size: Size) -> None:
    first = len(rows[tables.contents]) + 1
    for number in range(size.contents):
        content_id = first + number
        rows[tables.contents].append(_content(random, content_id, user_id))
        if random.random() < 0.5:
            length = f"{random.randrange(1, 60)}:{random.randrange(60):02}"
            rows[tables.video_metadata].append({"id": content_id, "content_id": content_id, "length": length})
        else:
            excerpt = _text(random, sentences=1)
            rows[tables.post_metadata].append({"id": content_id, "content_id": content_id, "excerpt": excerpt})
        tag_pair = _two_tags(random, tag_ids, number)
        rows[tables.content_tag] += [{"content_id": content_id, "tag_id": tag_id} for tag_id in tag_pair]


def _add_articles(random: Random, rows: Rows, user_id: int, tag_ids: list[int], size: Size) -> None:
    first = len(rows[tables.articles]) + 1
    for number in range(size.articles):
        rows[tables.articles].append(_article(random, first + number, user_id))
        tag_pair = _two_tags(random, tag_ids, number)
        rows[tables.article_tag] += [{"article_id": first + number, "tag_id": tag_id} for tag_id in tag_pair]
    for _ in range(size.comments):
        article_id = first + random.randrange(size.articles)
        rows[tables.comments].append(_comment(random, len(rows[tables.comments]) + 1, user_id, article_id))


def _user(user_id: int, seed: int) -> Row:
    return {
        "id": user_id,
        "email": f"user{user_id}@example.com",
        "name": f"User {user_id}",
        "refresh_token": refresh_token(user_id, seed),
        "refreshed_at": None,
    }


def _tag(random: Random, tag_id: int, user_id: int, number: int) -> Row:
    name = f"{_TOPICS[number % len(_TOPICS)]}-{number}"
    return {"id": tag_id, "user_id": user_id, "name": name, "color": random.choice(_COLORS)}


def _content(random: Random, content_id: int, user_id: int) -> Row:
    title = _title(random)
    return {
        "id": content_id,
        "user_id": user_id,
        "url": f"https://example.com/{title.lower().replace(' ', '-')}/{content_id}",
        "title": title,
        "description": _text(random, sentences=2),
        "bookmarked": random.random() < 0.4,
        "created_at": _moment(random),
    }


def _article(random: Random, article_id: int, user_id: int) -> Row:
    return {
        "id": article_id,
        "user_id": user_id,
        "title": _title(random),
        "body": _text(random, sentences=4),
        "created_at": _moment(random),
    }


def _comment(random: Random, comment_id: int, user_id: int, article_id: int) -> Row:
    return {
        "id": comment_id,
        "user_id": user_id,
        "article_id": article_id,
        "body": _text(random, sentences=1),
        "created_at": _moment(random),
    }


def _two_tags(random: Random, tag_ids: list[int], number: int) -> list[int]:
    """The first in turn, so that each tag has something even in the smallest size."""
    first = tag_ids[number % len(tag_ids)]
    return [first, random.choice([tag_id for tag_id in tag_ids if tag_id != first])]


def _title(random: Random) -> str:
    return f"{random.choice(_VERBS)} {random.choice(_TOPICS)} {random.choice(_ENDINGS)}"


def _text(random: Random, *, sentences: int) -> str:
    return " ".join(f"{_title(random)}." for _ in range(sentences))


def _moment(random: Random) -> datetime:
    return _START + timedelta(minutes=random.randrange(500_000))
