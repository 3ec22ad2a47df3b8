"""The tasks against RULER's published definition: structure, wording, edge cases."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.ruler import ruler_recipes
from lychee_sgl.eval.ruler.needles import DEPTHS, NOISE, grid_recipe
from lychee_sgl.eval.ruler.questions import question_recipe
from lychee_sgl.eval.ruler.vocabulary import adjectives, nouns, shuffled
from lychee_sgl.eval.text import Prose, sentences

if TYPE_CHECKING:
    from lychee_sgl.eval.fit import Recipe
    from lychee_sgl.eval.sample import Sample

PROSE = Prose("reference")
RECIPES = {recipe.name: recipe for recipe in ruler_recipes(PROSE)}
WORD = r"\w+-\S.*"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def count(prompt: str, prefix: str) -> int:
    """Four letters a token, and a template of ten."""
    return (len(prompt) + len(prefix)) // 4 + 10


def made(name: str, length: int = 2000, samples: int = 3, seed: int = 1) -> list[Sample]:
    return list(RECIPES[name].samples(length, samples, seed, count))


def needles(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"One of the special magic (\w+) for (.+?) is: (\S+?)\.(?=\s|$)", text)


def test_the_eleven_that_need_no_file_in_the_order_of_the_definition() -> None:
    assert list(RECIPES) == [
        "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
        "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
    ]  # fmt: skip


def test_answers_are_as_long_and_scored_as_in_the_definition(squad: Path) -> None:
    longest = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50}
    for name in RECIPES:
        sample = made(name, samples=1)[0]
        assert (sample.max_tokens, sample.metric) == (longest[name.partition("_")[0]], "match_all")
    sample = next(question_recipe("qa_1", squad).samples(500, 1, 1, count))
    assert (sample.max_tokens, sample.metric) == (32, "match_any")


def test_a_sample_that_came_out_too_long_is_made_shorter_by_the_definitions_steps() -> None:
    for name, (short, long) in {
        "niah_single_1": (5, 25), "niah_single_2": (500, 500), "niah_multikey_2": (5, 25), "niah_multikey_3": (5, 25),
        "niah_multiquery": (500, 500), "vt": (5, 10), "cwe": (10, 10), "fwe": ((4095 - 50) // 32, (4096 - 50) // 32),
    }.items():  # fmt: skip
        assert (RECIPES[name].step(4095), RECIPES[name].step(4096)) == (short, long)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("length", [1500, 5000])
def test_every_sample_fits_and_nearly_fills_its_length(name: str, length: int) -> None:
    for sample in made(name, length):
        found = count(sample.prompt, sample.prefix) + sample.max_tokens
        assert length * 0.55 < found <= length  # an essay grows by 500 words, as the definition has it
        assert sample.length == length


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_samples_and_each_alone(name: str) -> None:
    three, two, other = made(name), made(name, samples=2), made(name, seed=2)
    assert three[:2] == two
    assert len({sample.prompt for sample in three}) == 3
    assert not {sample.prompt for sample in three} & {sample.prompt for sample in other}


@pytest.mark.parametrize(
    ("name", "kind", "facts", "answers"),
    [
        ("niah_single_1", "numbers", 1, 1),
        ("niah_single_2", "numbers", 1, 1),
        ("niah_single_3", "uuids", 1, 1),
        ("niah_multikey_1", "numbers", 4, 1),
        ("niah_multivalue", "numbers", 4, 4),
        ("niah_multiquery", "numbers", 4, 4),
    ],
)
def test_needles_hold_the_answers(name: str, kind: str, facts: int, answers: int) -> None:
    for sample in made(name):
        found = needles(sample.prompt)
        assert len(found) == facts
        assert {what for what, _, _ in found} == {kind}
        assert len(sample.answers) == answers
        asked = sample.prompt.rpartition(" for ")[2].removesuffix(" mentioned in the provided text?")
        wanted = {value for _, key, value in found if key in asked}
        assert wanted == set(sample.answers)
        keys = {key for _, key, _ in found}
        assert len(keys) == (1 if name in ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multivalue") else 4)
        for value in sample.answers:
            assert re.fullmatch(UUID if kind == "uuids" else r"[1-9]\d{6}", value)


def test_one_value_is_asked_for_in_the_singular_and_several_in_the_plural() -> None:
    one, several = made("niah_single_1")[0], made("niah_multiquery")[0]
    key = needles(one.prompt)[0][1]
    assert one.prompt.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert one.prompt.endswith(f"\nWhat is the special magic number for {key} mentioned in the provided text?")
    assert one.prefix == f" The special magic number for {key} mentioned in the provided text is"
    assert several.prompt.startswith("Some special magic numbers are hidden within the following text.")
    keys = [key for _, key, _ in needles(several.prompt)]
    asked = re.search(r"\nWhat are all the special magic numbers for (.+) mentioned", several.prompt)
    assert asked is not None
    assert sorted(re.split(r", and |, ", asked[1])) == sorted(keys)
    assert asked[1].count(", and ") == 1
    assert several.prefix == f" The special magic numbers for {asked[1]} mentioned in the provided text are"
    values = {key: value for _, key, value in needles(several.prompt)}
    assert several.answers == tuple(values[key] for key in re.split(r", and |, ", asked[1]))  # in the order asked


def test_noise_is_one_sentence_a_line_with_the_needle_on_a_line_of_its_own() -> None:
    lines = made("niah_single_1")[0].prompt.split("\n")[1:-1]
    assert Counter(line == NOISE for line in lines)[False] == 1
    assert len(lines) > 20


@pytest.mark.parametrize(("name", "key"), [("niah_multikey_2", WORD), ("niah_multikey_3", UUID)])
def test_a_haystack_of_needles_has_one_that_is_asked_for(name: str, key: str) -> None:
    sample = made(name)[0]
    lines = sample.prompt.split("\n")[1:-1]
    found = needles("\n".join(lines))
    assert len(found) == len(lines)
    assert all(re.fullmatch(key, name) for _, name, _ in found)
    assert Counter(value for _, _, value in found)[sample.answers[0]] == 1


def test_needles_in_prose_stand_at_depths_of_the_definition() -> None:
    assert DEPTHS[:4] == (0, 3, 5, 8)
    assert DEPTHS[-1] == 100
    assert len(DEPTHS) == 40
    sample = made("niah_multivalue")[0]
    context = sample.prompt.split("\n")[1]
    plain = re.sub(r"One of the special magic numbers for .+? is: \d{7}\. ?", "", context)
    assert " ".join(plain.split()) in PROSE.first(3000)
    cut = sentences(" ".join(plain.split()))
    allowed = {len(cut) * depth // 100 for depth in DEPTHS}
    before = [
        sentences(" ".join(re.sub(r"One of the special magic numbers for .+? is: \d{7}\. ?", "", part).split()))
        for part in (context[: found.start()] for found in re.finditer("One of the special", context))
    ]
    assert {len([s for s in part if s]) for part in before} <= allowed


def test_variables_form_one_chain_of_five_after_a_worked_example() -> None:
    for sample in made("vt", 4500):
        example, asked = sample.prompt.split("\n\nMemorize and track")
        start = re.search(r"VAR ([A-Z]{5}) = (\d{5})$", asked, re.MULTILINE)
        assert start is not None
        chain = [start[1]]
        copies = re.findall(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5}) $", asked, re.MULTILINE)
        for name, source in copies:
            assert source == chain[-1]
            chain.append(name)
        assert sample.answers == tuple(chain)
        assert len(chain) == 5
        assert asked.endswith(f"Find all variables that are assigned the value {start[2]} in the text above.")
        assert sample.prefix == (
            " Answer: According to the chain(s) of variable assignment in the text above, "
            f"5 variables are assigned the value {start[2]}, they are: "
        )
        shown = re.findall(r"VAR ([A-Z]{3}) = ", example)
        assert example.endswith(f"they are:  {' '.join(shown)}")
        assert count(example, "") < 530


def test_the_example_of_variables_keeps_its_places_and_changes_its_names() -> None:
    examples = [sample.prompt.split("\n\nMemorize and track")[0] for sample in made("vt", 4500)]
    assert len(set(examples)) == 3
    assert len({re.sub(r"\b[A-Z]{3}\b|\d{5}", "-", example.replace("VAR", "")) for example in examples}) == 1


@pytest.mark.parametrize(("length", "often", "seldom", "shown"), [(2000, 6, 1, (3, 1)), (5000, 30, 3, (10, 3))])
def test_common_words_have_the_frequencies_of_the_definition(
    length: int, often: int, seldom: int, shown: tuple[int, int]
) -> None:
    for sample in made("cwe", length):
        parts = sample.prompt.split("Memorize the ones that appear most often.\n")[1:]
        example, asked = (
            re.findall(r"\d+\. ([^\d\n]+?)(?= \d+\. |\n|$)", part.split("\nQuestion")[0]) for part in parts
        )
        counts = Counter(asked)
        assert Counter(counts.values())[often] == 10
        assert set(counts.values()) == {often, seldom}
        assert {word for word, found in counts.items() if found == often} == set(sample.answers)
        assert set(Counter(example).values()) == set(shown)
        assert len(set(example)) == (20 if length < 4096 else 40)
        assert re.search(r"in the list are: 1\. .+ 10\. \S+", parts[0])
        assert sample.prefix == " Answer: The top 10 words that appear most often in the list are:"


def test_common_words_end_where_the_vocabulary_does() -> None:
    assert len(shuffled(1)) == len({*shuffled(1)}) > 8000
    most = RECIPES["cwe"].make(len(shuffled(1)), 9999, -1, 1, count)[1]
    with pytest.raises(EvalError, match=rf"cwe at a length of {most + 500}: the most there can be is \d+ tokens"):
        made("cwe", most + 500)
    sample = next(RECIPES["cwe"].samples(most - 500, 1, 1, count))  # nearly all words, far beyond the last doubling
    assert most - 1500 < count(sample.prompt, sample.prefix) + 120 <= most - 500


def test_frequent_words_follow_a_zeta_distribution_under_dots() -> None:
    for sample in made("fwe", 3000):
        text = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
        ranked = Counter(text).most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == list(sample.answers)
        total = ranked[0][1] * 1.6449340668  # what the definition calls the number of words
        for place, (_, found) in enumerate(ranked[1:6], 2):
            assert found == pytest.approx(total / 1.6449340668 / place**2, abs=1.1)
        assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in ranked[1:])


def test_lengths_that_are_too_short_are_refused_with_what_there_must_be() -> None:
    with pytest.raises(EvalError, match=r"niah_single_2 at a length of 300: the least there can be is \d+ tokens"):
        made("niah_single_2", 300)
    with pytest.raises(EvalError, match="fwe at a length of 200: allowed are lengths from 300 on"):
        made("fwe", 200)


def test_the_vocabulary_has_as_many_words_as_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "lychee_sgl" / "eval" / "README.md").read_text(encoding="utf-8")
    assert f"({len(shuffled(1)):,} words)" in page


def test_words_are_adjective_and_noun() -> None:
    for _, key, _ in needles(made("niah_multikey_1")[0].prompt):
        assert any(key == f"{first}-{key[len(first) + 1 :]}" for first in adjectives())
        assert any(key.endswith(f"-{last}") for last in nouns())


def test_prose_begins_again_where_it_ends() -> None:
    words = PROSE.words
    assert PROSE.first(len(words) + 2).split(" ")[-2:] == list(words[:2])


def test_the_grid_puts_the_needle_where_it_says() -> None:
    recipe: Recipe = grid_recipe(PROSE, 5)
    samples = list(recipe.samples(1200, 5, 1, count))
    assert [sample.depth for sample in samples] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for sample in samples:
        context = sample.prompt.split("\n")[1]
        before = context.index("One of the special magic")
        assert before / len(context) == pytest.approx(sample.depth or 0.0, abs=0.15)


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    def article(title: str, count: int) -> dict[str, object]:
        return {
            "title": title,
            "paragraphs": [
                {
                    "context": f"{title} has a river called {title}water number {i}.",
                    "qas": [
                        {
                            "question": f"What is river {i} of {title}?",
                            "answers": [{"text": f"{title}water"}, {"text": f"the {title}water"}],
                            "is_impossible": False,
                        },
                        {"question": "Unanswerable?", "answers": [], "is_impossible": True},
                    ],
                }
                for i in range(count)
            ],
        }

    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps({"data": [article("Aa", 4), article("Bb", 60)]}))
    return path


def test_questions_stand_among_documents_of_their_article_first(squad: Path) -> None:
    samples = list(question_recipe("qa_1", squad).samples(500, 4, 1, count))
    for number, sample in enumerate(samples):
        assert sample.answers == ("Aawater", "the Aawater")
        assert sample.prompt.endswith(f"Question: What is river {number} of Aa?")
        assert sample.prefix == " Answer:"
        documents = re.findall(r"^Document (\d+):\n(.+)$", sample.prompt, re.MULTILINE)
        assert [int(place) for place, _ in documents] == list(range(1, len(documents) + 1))
        texts = [text for _, text in documents]
        assert len(set(texts)) == len(texts) > 10
        assert sum(text.startswith("Aa") for text in texts) == 4  # its own and all of its article


def test_more_questions_than_the_file_has_are_refused(squad: Path) -> None:
    with pytest.raises(EvalError, match="allowed: the file's 64 questions"):
        list(question_recipe("qa_1", squad).samples(500, 65, 1, count))


def test_hotpot_documents_carry_their_titles(tmp_path: Path) -> None:
    path = tmp_path / "hotpot.json"
    entries = [
        {"question": f"Q{i}?", "answer": "yes", "context": [[f"T{i}{j}", ["One. ", "Two."]] for j in range(10)]}
        for i in range(3)
    ]
    path.write_text(json.dumps(entries))
    sample = next(question_recipe("qa_2", path).samples(300, 1, 1, count))
    own = re.findall(r"Document \d+:\nT0(\d)\nOne. Two.", sample.prompt)
    assert sorted(own) == [str(j) for j in range(10)]
    assert sample.answers == ("yes",)


def test_a_missing_or_strange_file_of_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"qa_1 needs SQuAD 2.0's dev-v2.0.json: .*nowhere"):
        question_recipe("qa_1", tmp_path / "nowhere.json")
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(EvalError, match=r"other.json is not SQuAD 2.0's dev-v2.0.json: KeyError 'data'"):
        question_recipe("qa_1", tmp_path / "other.json")
