"""MovieLens titles as people write them."""

import pytest

from infra.demo_data import display_title


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Toy Story", "Toy Story (1995)"),
        ("Usual Suspects, The", "The Usual Suspects (1995)"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly (1995)"),
        ("Postino, Il", "Il Postino (1995)"),
        ("Enfer, L'", "L'Enfer (1995)"),
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le)",
            "The Horseman on the Roof (Le Hussard sur le toit) (1995)",
        ),
        ("Contempt (Mépris, Le)", "Contempt (Le Mépris) (1995)"),
        ("Star Maker, The (Uomo delle stelle, L')", "The Star Maker (L'Uomo delle stelle) (1995)"),
        ("Maybe, Maybe Not (Bewegte Mann, Der)", "Maybe, Maybe Not (Der Bewegte Mann) (1995)"),
        ("Mrs. Brown (Her Majesty, Mrs. Brown)", "Mrs. Brown (Her Majesty, Mrs. Brown) (1995)"),
        ("I, Worst of All (Yo, la peor de todas)", "I, Worst of All (Yo, la peor de todas) (1995)"),
    ],
)
def test_the_article_goes_to_the_front_and_the_year_to_the_end(title: str, expected: str) -> None:
    assert display_title(title, "1995") == expected


def test_a_film_that_nobody_knows_has_no_title() -> None:
    assert display_title("unkonwn", "unkonwn") == ""
