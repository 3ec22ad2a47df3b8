"""Embeddings in place of tokens, through SGLang's own engine and our backend, radix cache and chunked prefill on.

Runs on whatever device there is. It starts an engine in this process, so it is asked for by name:
`pytest tests/live/test_inlays.py -m gpu`.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from lychee_sgl.backend.memory_model import EngineModel, dtype_name
from lychee_sgl.memory.blocks import PLACEHOLDER
from lychee_sgl.memory.model import Inlay
from lychee_sgl.models.embedded import ensure_unpacked

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from lychee_sgl.memory.model import Reply

pytestmark = [pytest.mark.gpu, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

TEXTS = [
    "".join(f"The {thing} of house {number} is kept by {who}, who never leaves. " for number in range(24))
    for thing, who in (("silver key", "a baker from Oslo"), ("black horse", "two pilots of Rome"))
]
TOKENS = 8
ASK = ["\n\nWhat is kept, and by whom?", "\n\nName the town that was mentioned above."]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    from sglang import Engine

    gpu = torch.cuda.is_available()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYCHEE_DENSE_BELOW", "0")
        started = Engine(
            model_path=str(ensure_unpacked(lambda _: None)),
            attention_backend="lychee",
            chunked_prefill_size=256,
            max_total_tokens=16384,
            **({"mem_fraction_static": 0.9} if gpu else {"device": "cpu"}),
        )
        yield started
        started.shutdown()


class Asker:
    """One model's calls, as a request makes them; sparse decoding on."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.manager = engine, engine.tokenizer_manager
        self.dtype = getattr(torch, dtype_name(self.manager))
        table = load_file(ensure_unpacked(lambda _: None) / "model.safetensors")["model.embed_tokens.weight"]
        self.table = table.to(self.dtype)
        self.model = EngineModel(
            self.manager,
            identity={},
            fields={},
            custom_params={"lychee_budget": 64},
            template={},
            summarise=lambda obj: None,
            secret="a secret",
        )

    def run(self, *calls: Coroutine[Any, Any, Reply]) -> list[Reply]:
        """Makes calls, all at once."""

        async def together() -> list[Reply]:
            return list(await asyncio.gather(*calls))

        return list(self.engine.loop.run_until_complete(together()))

    def flush(self) -> None:
        flushed = self.manager.flush_cache(timeout_s=30)  # waits until what was answered last has ended
        assert self.engine.loop.run_until_complete(flushed).success

    def ids(self, *texts: str) -> list[list[int]]:
        return self.model.encode(texts)

    def parts(self, text: str, ask: str) -> list[list[int]]:
        """What stands before a text, the text, what stands behind."""
        return self.ids("<|im_start|>user\n", text, f"{ask}<|im_end|>\n<|im_start|>assistant\n")

    def prompt(self, text: str, ask: str) -> tuple[list[int], Inlay]:
        """A prompt whose text is nothing but its tokens' own embeddings."""
        head, body, tail = self.parts(text, ask)
        vectors = self.table[body].contiguous().view(torch.uint8).numpy().tobytes()
        inlay = Inlay(at=len(head), count=len(body), vectors=vectors, digest=sha256(vectors).digest())
        return [*head, *[PLACEHOLDER] * len(body), *tail], inlay

    def plain(self, text: str, ask: str) -> Coroutine[Any, Any, Reply]:
        return self.model.generate([*chain(*self.parts(text, ask))], max_tokens=TOKENS)

    def inlaid(self, text: str, ask: str) -> Coroutine[Any, Any, Reply]:
        ids, inlay = self.prompt(text, ask)
        return self.model.generate(ids, max_tokens=TOKENS, inlay=inlay)


@pytest.fixture(scope="module")
def asker(engine: Any) -> Asker:
    return Asker(engine)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_own_embeddings_give_what_the_tokens_give(asker: Asker, text: str) -> None:
    for ask in ASK:
        asker.flush()
        (plain,) = asker.run(asker.plain(text, ask))
        asker.flush()
        (inlaid,) = asker.run(asker.inlaid(text, ask))
        assert inlaid.text == plain.text
        assert len(plain.text) > 10
        assert inlaid.prompt_tokens == plain.prompt_tokens


def test_the_second_question_finds_the_block_in_the_cache_and_says_the_same(asker: Asker) -> None:
    fresh = []
    for ask in ASK:
        asker.flush()
        fresh += asker.run(asker.inlaid(TEXTS[0], ask))
    (again,) = asker.run(asker.inlaid(TEXTS[0], ASK[0]))
    _, inlay = asker.prompt(TEXTS[0], ASK[0])
    assert fresh[0].cached_tokens == fresh[1].cached_tokens == 0
    assert again.cached_tokens >= (inlay.at + inlay.count) // 64 * 64  # whole pages, where a page has several tokens
    assert again.text == fresh[0].text


def test_other_embeddings_under_the_same_ids_stay_apart(asker: Asker) -> None:
    """The texts have as many tokens, so the prompts are the same ids: only the key tells them apart."""
    prompts = [asker.prompt(text, ASK[0]) for text in TEXTS]
    count = min(inlay.count for _, inlay in prompts)
    head, tail = asker.ids("<|im_start|>user\n", f"{ASK[0]}<|im_end|>\n<|im_start|>assistant\n")
    ids = [*head, *[PLACEHOLDER] * count, *tail]
    size = len(prompts[0][1].vectors) // prompts[0][1].count
    inlays = []
    for _, inlay in prompts:
        vectors = inlay.vectors[: count * size]
        inlays.append(Inlay(at=len(head), count=count, vectors=vectors, digest=sha256(vectors).digest()))

    def call(inlay: Inlay | None) -> Coroutine[Any, Any, Reply]:
        return asker.model.generate(ids, max_tokens=TOKENS, inlay=inlay)

    alone = []
    for inlay in (*inlays, None):
        asker.flush()
        alone += asker.run(call(inlay))
    assert len({reply.text for reply in alone}) == 3
    asker.flush()
    for _ in range(2):
        for inlay, expected in zip((*inlays, None), alone, strict=True):
            (reply,) = asker.run(call(inlay))
            # behind a cached prefix, as in a batch, a GPU adds up in another order: what is named is each text's own
            assert reply.text[:12] == expected.text[:12]
    together = asker.run(*(call(inlay) for inlay in (*inlays, None) * 2))
    assert [reply.text[:12] for reply in together] == [reply.text[:12] for reply in alone] * 2
    # and what a prompt of the placeholders alone finds in the cache is its own
    asker.flush()
    asker.run(call(inlays[0]))
    (nobody,) = asker.run(call(None))
    assert nobody.cached_tokens == 0


def test_scores_behind_embeddings_are_those_behind_the_tokens(asker: Asker) -> None:
    ids, inlay = asker.prompt(TEXTS[1], ASK[1])
    plain_ids = [*chain(*asker.parts(TEXTS[1], ASK[1]))]
    start = inlay.at + inlay.count
    found = []
    for prompt, given in ((plain_ids, None), (ids, inlay)):
        asker.flush()
        calls = [asker.model.generate(prompt, max_tokens=1, score_from=start, inlay=given) for _ in range(2)]
        found.append([reply for call in calls for reply in asker.run(call)])
    # what comes out of the cache is added up in another order: like is compared with like
    for plain, inlaid in zip(*found, strict=True):
        assert inlaid.cached_tokens == plain.cached_tokens
        assert inlaid.logprobs == pytest.approx(plain.logprobs, abs=0.05)
        assert len(plain.logprobs) == len(ids) - start
    assert found[1][1].cached_tokens > 0
