import pytest

from lychee_sgl.demo.compare import given_number, has_number, same_answer


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("It is 1234567.", "1234567"),
        ("1,234,567 it is", "1234567"),
        ("The number is 123 4567", "1234567"),
        ("first 7654321, then 1234567", "7654321"),
        ("in 1999 there were 12", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_first_long_number_is_what_a_reply_gives(reply: str, number: str | None) -> None:
    assert given_number(reply) == number


def test_digits_inside_a_longer_number_are_not_the_expected_one() -> None:
    assert has_number("1234567", "it is 1234567")
    assert not has_number("1234567", "it is 12345678")
    assert not has_number("1234567", "it is 91234567")
    assert has_number("1234567", "not 7654321. It is 1,234,567!")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("It is 1234567.", "The number: 1,234,567", True),
        ("It is 1234567.", "It is 1234568.", False),
        ("It is 1234568.", "It is 1234567.", False),
        ("It is 7654321.", "7654321", True),
        ("It is 7654321.", "It is 7654322.", False),
        ("I do not know.", "There is no number.", True),
        ("I do not know.", "It is 7654321.", False),
        ("", "It is 1234567.", False),
    ],
)
def test_same_answer(one: str, other: str, same: bool) -> None:
    assert same_answer("1234567", one, other) is same
