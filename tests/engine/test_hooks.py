"""Where the plug-in touches SGLang: every place exists, and what is not in place is named."""

from types import SimpleNamespace

import pytest

from lychee_kernels.layout import Mode
from lychee_sgl import compat
from lychee_sgl.backend import factory, hooks
from lychee_sgl.backend.results import HostSteps
from lychee_sgl.backend.summary import Step
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import ModelShape, PlanError


@pytest.mark.parametrize(
    ("version", "args", "kwargs", "expected"),
    [
        ((0, 5, 17), ("req", "tree"), {}, (("req", "tree"), {"is_insert": False})),
        ((0, 5, 17), ("req", "tree", True), {}, (("req", "tree"), {"is_insert": False})),
        ((0, 5, 17), ("req", "tree"), {"is_insert": True}, (("req", "tree"), {"is_insert": False})),
        ((0, 5, 23), ("req", "tree"), {"checkpoint": True}, (("req", "tree"), {"checkpoint": False})),
    ],
)
def test_release_without_insertion(monkeypatch, version, args, kwargs, expected) -> None:
    monkeypatch.setattr(compat, "sglang_version", lambda: version)
    assert compat.keep_out_of_radix_cache(args, kwargs) == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.5.17", (0, 5, 17)), ("0.5.18rc1", (0, 5, 18)), ("0.5.19.post1", (0, 5, 19)), ("0.5.20.dev3+g1a2", (0, 5, 20))],
)
def test_versions_that_are_no_plain_releases_are_not_too_old(monkeypatch, text, numbers) -> None:
    monkeypatch.setattr(compat, "version", lambda name: text)
    compat.sglang_version.cache_clear()
    try:
        assert compat.sglang_version() == numbers
        compat.check_version()
    finally:
        compat.sglang_version.cache_clear()


def test_only_requests_with_sparse_kv_are_kept_out() -> None:
    req, kept = SimpleNamespace(output_ids=[1, 2]), []
    tree = SimpleNamespace(cache_unfinished_req=kept.append)
    assert hooks.before_release(req, tree) is None
    setattr(req, hooks.SPARSE_FLAG, True)
    args, kwargs = hooks.before_release(req, tree)
    assert args == (req, tree)
    assert list(kwargs.values()) == [False]
    assert kept == []


@pytest.mark.parametrize(("insert", "kept"), [(True, 1), (False, 0)])
def test_a_prompt_whose_first_token_was_the_last_is_kept(insert: bool, kept: int) -> None:
    inserted = []
    req = SimpleNamespace(output_ids=[7], **{hooks.SPARSE_FLAG: True})
    tree = SimpleNamespace(cache_unfinished_req=inserted.append)
    hooks.before_release(req, tree, is_insert=insert)
    assert inserted == [req] * kept
    hooks.before_release(req, SimpleNamespace(), is_insert=insert)  # an SGLang without the call


class FakeBackend:
    """Gives the steps it was made with, and remembers who was admitted."""

    def __init__(self, steps):
        self.steps, self.admitted, self.batch_reqs = steps, [], None

    def correct(self, forward, batch):
        return None

    def take_results(self):
        return None if self.steps is None else HostSteps(self.steps)

    def admit(self, reqs, lengths):
        self.admitted += reqs
        assert lengths == [12] * len(reqs)


def batch_of(mode: str):
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: mode == "extend", is_decode=lambda: mode == "decode"),
        extend_prefix_lens_cpu=[8],
        extend_seq_lens_cpu=[4],
    )


def forward(backend, reqs, mode):
    runner = SimpleNamespace(lychee=backend)
    hooks.after_init_new(batch_of(mode), object, SimpleNamespace(reqs=reqs), runner)
    output = SimpleNamespace(logits_output=SimpleNamespace(customized_info=None))
    return hooks.around_forward(lambda *_: output, runner, None).logits_output.customized_info


def test_a_sparse_step_marks_its_request_until_it_is_prefilled_again() -> None:
    dense, sparse = SimpleNamespace(), SimpleNamespace()
    steps = [Step(10, 10, 1, 5, 10, None, 2), Step(4, 10, 0, 5, 10, 0.5, 2)]
    info = forward(FakeBackend(steps), [dense, sparse], "decode")
    assert [info["lychee"][row] for row in range(2)] == [(10, 10, 1, 5, 10, None, 2), (4, 10, 0, 5, 10, 0.5, 2)]
    assert not getattr(dense, hooks.SPARSE_FLAG, False)
    assert getattr(sparse, hooks.SPARSE_FLAG)
    backend = FakeBackend(None)
    assert forward(backend, [sparse], "extend") == {"lychee": [None]}
    assert backend.admitted == [sparse]
    assert not getattr(sparse, hooks.SPARSE_FLAG)


def test_other_backends_are_left_alone() -> None:
    output = SimpleNamespace(logits_output=SimpleNamespace(customized_info=None))
    hooks.after_init_new(batch_of("decode"), object, SimpleNamespace(reqs=[]), SimpleNamespace())
    assert hooks.around_forward(lambda *_: output, SimpleNamespace(), None).logits_output.customized_info is None


@pytest.mark.filterwarnings("ignore")  # SGLang warns while it is imported where there is no GPU
def test_every_place_exists_in_the_installed_sglang_and_installing_twice_registers_once() -> None:
    import pkgutil

    from sglang.srt.plugins.hook_registry import HookRegistry

    for hook in hooks.hooks():
        assert callable(pkgutil.resolve_name(hook.target)), hook.target
    try:
        hooks.install()
        hooks.install()
        registered = {target: len(found) for target, found in HookRegistry._hooks.items()}
        assert registered == {hook.target: 1 for hook in hooks.hooks()}
        assert hooks.missing() == [hook.target for hook in hooks.hooks()]
    finally:
        HookRegistry.reset()


def test_the_factory_names_hooks_that_are_not_in_place(monkeypatch) -> None:
    monkeypatch.setattr(hooks, "missing", lambda: ["sglang.a", "sglang.b"])
    with pytest.raises(factory.BackendRefused, match=r"could not be applied to this SGLang: sglang\.a, sglang\.b"):
        factory.create_backend(None)


def runner(**changes):
    values = {
        "device": "cpu",
        "use_mla_backend": False,
        "is_hybrid_swa": False,
        "sliding_window_size": None,
        "dtype": "torch.bfloat16",
        "kv_cache_dtype": "torch.bfloat16",
        "kv_cache_dtype_str": "auto",
    }
    shape = {
        "is_encoder_decoder": False,
        "is_generation": True,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    args = {
        "speculative_algorithm": None,
        "enable_mixed_chunk": False,
        "page_size": 1,
        "quantization_param_path": None,
        "enable_dp_attention": False,
        "attn_cp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "enable_pdmux": False,
        "enable_two_batch_overlap": False,
        "enable_streaming_session": False,
        "enable_torch_compile": False,
        "enable_deterministic_inference": False,
        "disaggregation_mode": "null",
        "tokenizer_worker_num": 1,
        "backends": ("lychee", "lychee"),
    }
    layer = {"logit_cap": 0.0, "is_cross_attention": False, "v_head_dim": 128, "head_dim": 128}
    layer |= {"sliding_window_size": -1, "attn_type": SimpleNamespace(value="decoder")}
    layer |= changes.pop("layer", {})
    layers = [type("RadixAttention", (), layer)() for _ in range(changes.pop("layers", 2))]
    for key, value in changes.items():
        next((group for group in (args, shape) if key in group), values)[key] = value
    model = SimpleNamespace(**shape)
    server_args = SimpleNamespace(**args, get_attention_backends=lambda: args["backends"])
    served = SimpleNamespace(modules=lambda: [object(), *layers])
    return SimpleNamespace(server_args=server_args, model_config=model, model=served, **values)


@pytest.fixture
def launched(monkeypatch):
    """Arguments of an engine with a small Llama, as they are before its processes start."""
    monkeypatch.setattr(hooks, "missing", list)
    text = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    }
    args = runner().server_args
    args.model_path, args.served_model_name, args.tp_size = "small", None, 1
    args.get_model_config = lambda: SimpleNamespace(hf_text_config=SimpleNamespace(to_dict=lambda: text))
    return args


def test_what_arguments_and_files_tell_is_refused_before_any_process_starts(launched, tmp_path, monkeypatch) -> None:
    hooks.before_launch(launched)
    launched.enable_mixed_chunk = True
    with pytest.raises(factory.BackendRefused, match="does not serve --enable-mixed-chunk"):
        hooks.before_launch(launched)
    launched.enable_mixed_chunk = False
    plan = tmp_path / "plan.json"
    heuristic_plan(ModelShape("other", "LlamaForCausalLM", 2, 4, 2, 64)).save(plan)
    monkeypatch.setenv("LYCHEE_HEADS", str(plan))
    with pytest.raises(PlanError, match=r"other \(LlamaForCausalLM: 2 layers, .*4 layers"):
        hooks.before_launch(launched)
    monkeypatch.setattr(hooks, "missing", lambda: ["sglang.a"])
    with pytest.raises(factory.BackendRefused, match=r"could not be applied to this SGLang: sglang\.a"):
        hooks.before_launch(launched)
    launched.get_attention_backends = lambda: ("triton", "triton")
    hooks.before_launch(launched)  # somebody else's engine


def test_a_plain_model_is_served() -> None:
    factory.check_server_args(runner())
    factory.check_server_args(runner(device="cuda", page_size=64))
    factory.check_server_args(runner(device="cuda", dtype="torch.float16", kv_cache_dtype="torch.float16"))
    for name in ("float8_e4m3fn", "float8_e5m2"):
        factory.check_server_args(runner(device="cuda", kv_cache_dtype=f"torch.{name}"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": "xpu"}, "device xpu"),
        ({"use_mla_backend": True}, "MLA"),
        ({"is_hybrid_swa": True}, "sliding-window"),
        ({"sliding_window_size": 4096}, "sliding-window"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"is_generation": False}, "embedding and reward models, which decode nothing"),
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm EAGLE"),
        ({"enable_mixed_chunk": True}, "--enable-mixed-chunk"),
        ({"page_size": 16}, "--page-size 16"),
        ({"enable_dp_attention": True}, "--enable-dp-attention"),
        ({"attn_cp_size": 2}, "--attn-cp-size 2"),
        ({"dcp_size": 2}, "--dcp-size 2"),
        ({"pp_size": 2}, "--pp-size 2"),
        ({"enable_pdmux": True}, "--enable-pdmux"),
        ({"enable_two_batch_overlap": True}, "--enable-two-batch-overlap"),
        ({"enable_streaming_session": True}, "--enable-streaming-session"),
        ({"enable_torch_compile": True}, "--enable-torch-compile"),
        ({"enable_deterministic_inference": True}, "--enable-deterministic-inference"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode decode"),
        ({"tokenizer_worker_num": 2}, "--tokenizer-worker-num 2"),
        ({"backends": ("lychee", "flashinfer")}, "--decode-attention-backend has to be lychee"),
        ({"lychee": object()}, "a second attention backend"),
        ({"layer": {"logit_cap": 30.0}}, "a soft cap on attention logits"),
        ({"layer": {"is_cross_attention": True}}, "cross-attention"),
        ({"layer": {"v_head_dim": 64}}, "value heads of another size"),
        ({"layer": {"sliding_window_size": 511}}, "sliding-window"),
        ({"layer": {"attn_type": SimpleNamespace(value="encoder_only")}}, "attention that is not causal"),
        ({"layers": 1}, r"without attention in every layer \(1 of 2\)"),
        ({"dtype": "torch.float16"}, "--dtype float16"),
        ({"device": "cuda", "dtype": "torch.float32"}, "--dtype float32"),
        (
            {"kv_cache_dtype": "torch.float8_e4m3fn", "kv_cache_dtype_str": "fp8_e4m3"},
            r"--kv-cache-dtype fp8_e4m3 \(on the CPU",
        ),
        ({"device": "cuda", "quantization_param_path": "scales.json"}, "--quantization-param-path"),
        (
            {"device": "cuda", "kv_cache_dtype": "torch.float4_e2m1fn_x2", "kv_cache_dtype_str": "fp4_mx_block16"},
            "--kv-cache-dtype fp4_mx_block16",
        ),
        (
            {"device": "cuda", "kv_cache_dtype": "torch.float8_e4m3fn", "kv_cache_dtype_str": "mxfp8"},
            "--kv-cache-dtype mxfp8",
        ),
        ({"device": "cuda", "head_dim": 96}, "heads of size 96"),
        ({"device": "cuda", "num_attention_heads": 136}, "17 query heads"),
    ],
)
def test_refusals_name_the_setting(change, named) -> None:
    with pytest.raises(factory.BackendRefused, match=f"does not serve .*{named}"):
        factory.check_server_args(runner(**change))


def test_what_the_refusals_read_is_what_sglangs_layers_have() -> None:
    pytest.importorskip("sglang")
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

    plain = RadixAttention(4, 64, 0.125, 2, 0)
    model = SimpleNamespace(modules=lambda: [plain, plain])
    served = runner()
    served.model = model
    factory.check_server_args(served)
    for change in ({"sliding_window_size": 511}, {"attn_type": AttentionType.ENCODER_ONLY}, {"logit_cap": 30.0}):
        odd = RadixAttention(4, 64, 0.125, 2, 0, **change)
        served.model = SimpleNamespace(modules=lambda odd=odd: [plain, odd])
        with pytest.raises(factory.BackendRefused):
            factory.check_server_args(served)


def test_modes_are_the_kernels() -> None:
    """The numbers in the row tables are those of the compiled loops."""
    from lychee_sgl.cpu import loops

    assert [int(mode) for mode in Mode] == [loops.TOPK, loops.RATIO, loops.THRESHOLD, loops.TOP_P]
