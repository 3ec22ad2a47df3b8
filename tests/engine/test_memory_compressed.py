"""`compressed` in front of SGLang's own chat handler; the compressor packs, and the scheduler is not there."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lychee_sgl.backend.inlays import MARK
from lychee_sgl.backend.memory_room import Room
from lychee_sgl.config import EngineConfig
from lychee_sgl.memory.bank import Bank
from lychee_sgl.memory.blocks import PLACEHOLDER, BlockBank
from tests.engine.memory_engine import DOCUMENT, FACT, FILLER, Client, Manager, ask, error_of, events_of
from tests.memory.scripted_model import Packing

if TYPE_CHECKING:
    from pathlib import Path

# SGLang warns of much where there is no GPU when it is imported
pytestmark = pytest.mark.filterwarnings("ignore")

WANTED = {"lychee_memory": "compressed", "lychee_chunk": 128}
RATIO = 4


class Packed(Manager):
    """Reads in place of an inlay's placeholders the tokens that were packed into it."""

    async def generate_request(self, obj: Any, raw: Any = None):
        self.asked.append(obj)
        sent, given = list(obj.input_ids), obj.positional_embed_overrides
        if given is not None:
            packed = given.embeds.view(torch.int32).flatten().tolist()
            first, count = given.positions[0], len(given.positions)
            assert given.positions == list(range(first, first + count))
            assert sent[first : first + count] == [PLACEHOLDER] * count
            prompt = self.tokenizer.decode([*sent[:first], *packed, *sent[first + count :]])
            assert MARK in obj.extra_key
        else:
            prompt = self.tokenizer.decode(sent)
        text = (FACT if FACT in prompt else "none") if "Copy the sentences" in prompt else "Under the mat."
        meta = {"id": obj.rid, "prompt_tokens": len(sent), "completion_tokens": 5, "cached_tokens": 3,
                "finish_reason": {"type": "stop", "matched": 2}, "weight_version": "1"}  # fmt: skip
        if obj.return_logprob:
            likely = -1.0 if "under the mat" in prompt.split("<|im_start|>user")[1][:60] else -3.0
            meta["input_token_logprobs"] = [(None, 0, None), *[(likely, 1, None)] * (len(sent) - 1)]
        yield {"text": text, "index": 0, "meta_info": meta}


@pytest.fixture
def packing() -> Packing:
    return Packing(RATIO)


@pytest.fixture
def packed(tokenizer: Any, tmp_path: Path, packing: Packing) -> Packed:
    manager = Packed(tokenizer, EngineConfig(memory_bank=tmp_path / "bank.sqlite"))
    manager.model_config.dtype = torch.float32
    manager.lychee_memory = Room(
        config=manager.lychee.config,
        bank=Bank(tmp_path / "bank.sqlite", 10_000_000),
        ahead=1,
        plan="plan",
        blocks=BlockBank(packing, Bank(tmp_path / "blocks.sqlite", 10_000_000)),
        ratios=(2, 4),
        own_ratio=4,
        weights=manager.lychee.weights,
        secret="secret",
    )
    return manager


async def body_of(answer: Any) -> Any:
    assert hasattr(answer, "body"), answer
    return json.loads(answer.body)


async def test_an_answer_from_compressed_blocks_says_so(packed: Packed, packing: Packing) -> None:
    body = await body_of(await ask(packed, custom_params=WANTED))
    assert body["choices"][0]["message"]["content"] == "Under the mat."
    told = body["lychee"]["memory"]
    assert (told["mode"], told["ratio"], told["chunk"], told["chunks"], told["kept"]) == ("compressed", 4, 128, 4, 1)
    assert told["compressed_blocks"] == len(packing.made) == 4
    sent = [len(obj.input_ids) for obj in packed.asked]
    assert told["tokens_read"] == sum(sent[:-1])
    assert told["tokens_read"] < told["document_tokens"] + sum(sent[1:-1]) - 3 * 90
    # the answer itself, and what scores passages, is read as text
    keys = [obj.extra_key for obj in packed.asked]
    assert [key is None for key in keys] == [obj.positional_embed_overrides is None for obj in packed.asked]
    assert keys[-1] is None
    assert len({key for key in keys if key is not None}) == 4
    assert all("secret" not in (key or "") for key in keys)


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{DOCUMENT}{question}"}]


async def test_a_second_question_has_the_same_keys_and_compresses_nothing(packed: Packed, packing: Packing) -> None:
    await ask(packed, custom_params=WANTED)
    first = {obj.extra_key for obj in packed.asked}
    packed.asked.clear()
    body = await body_of(await ask(packed, custom_params=WANTED, messages=asked("What is under the mat?")))
    assert (body["lychee"]["memory"]["compressed_blocks"], body["lychee"]["memory"]["banked_steps"]) == (0, 0)
    assert len(packing.made) == 4
    assert {obj.extra_key for obj in packed.asked} == first


async def test_a_tenant_shares_nothing_and_does_not_learn_what_others_read(packed: Packed, packing: Packing) -> None:
    """Blocks used to be shared: an account of none compressed said that somebody had read them."""
    await ask(packed, custom_params=WANTED)
    first = {obj.extra_key for obj in packed.asked}
    packed.asked.clear()
    body = await body_of(await ask(packed, custom_params=WANTED, cache_salt="mine"))
    assert (body["lychee"]["memory"]["compressed_blocks"], body["lychee"]["memory"]["banked_steps"]) == (4, 0)
    assert first.isdisjoint(obj.extra_key for obj in packed.asked)
    assert all(obj.extra_key.startswith("mine") for obj in packed.asked)


async def test_a_stream_ends_with_the_same_account(packed: Packed) -> None:
    chunks = await events_of(await ask(packed, custom_params=WANTED, stream=True))
    told = [chunk["lychee"]["memory"] for chunk in chunks if "lychee" in chunk]
    assert told[0]["says"] == "reading chunk 1 of 4, kept 0"
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == "Under the mat."


async def test_a_compressor_that_fails_is_named(packed: Packed, packing: Packing) -> None:
    packing.failures = 9
    status, message, _ = error_of(await ask(packed, custom_params=WANTED))
    assert status == 500
    assert message.startswith("chunk 1 of 4 failed 3 times: no memory left")


@pytest.mark.timeout(30)
async def test_a_client_that_leaves_ends_the_compression(packed: Packed, packing: Packing) -> None:
    client, packing.hang = Client(), True
    task = asyncio.create_task(ask(packed, client, custom_params=WANTED))
    await packing.began.wait()
    client.gone = True
    assert error_of(await task)[0] == 499
    assert (packing.ended, packed.asked) == (1, [])


@pytest.mark.parametrize(
    ("params", "message", "param"),
    [
        ({"lychee_memory": "compressed", "lychee_ratio": 8}, "lychee_ratio is 8, allowed: 2, 4", "lychee_ratio"),
        ({"lychee_memory": "compressed", "lychee_ratio": 1}, "lychee_ratio is 1, allowed: a whole", "lychee_ratio"),
        ({"lychee_memory": "text", "lychee_ratio": 4}, "lychee_ratio is 4, allowed: only with", "lychee_ratio"),
        (
            {"lychee_memory": "compressed", "lychee_chunk": 9000},
            "lychee_chunk is 9000, allowed: up to ",
            "lychee_chunk",
        ),
    ],
)
async def test_what_cannot_be_compressed_is_refused_by_name(
    packed: Packed, packing: Packing, params: dict[str, Any], message: str, param: str
) -> None:
    status, said, named = error_of(await ask(packed, custom_params=params))
    assert (status, named) == (400, param)
    assert said.startswith(message)
    assert (packed.asked, packing.made) == ([], [])


async def test_a_chunk_beyond_the_window_is_read_where_its_embeddings_fit(packed: Packed, packing: Packing) -> None:
    text = f"{''.join(FILLER * 10)}{DOCUMENT}Where is the key of the Oslo office?"
    body = await body_of(await ask(packed, text=text, custom_params={**WANTED, "lychee_chunk": 4000}))
    assert (body["lychee"]["memory"]["chunks"], body["lychee"]["memory"]["kept"]) == (2, 1)
    assert len(packing.made[0]) > packed.model_config.context_len
    assert max(len(obj.input_ids) for obj in packed.asked) < 1400


async def test_exchanged_weights_have_no_compressor(packed: Packed) -> None:
    packed.server_args.weight_version = "2"
    status, said, _ = error_of(await ask(packed, custom_params=WANTED))
    assert status == 400
    assert said.endswith("the compressor is for the weights that the engine began with")
    assert (await body_of(await ask(packed)))["lychee"]["memory"]["mode"] == "text"
