"""torch.compile and CUDA's settings: set as the recipe says, and reset after the run."""

import ctypes
import resource
import shutil

import psutil
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor import cpp_builder
from torch.utils import cpp_extension

from align.config.model import ModelConfig
from align.durable.memory import freed_memory_kept
from align.errors import ConfigError
from align.model import image_tower
from align.model.dual_encoder import DualEncoder
from align.training import acceleration
from align.training import loss as loss_module
from align.training import train as train_module
from align.training.acceleration import accelerated, as_written, require_compiler
from align.training.loss import align_loss, sigmoid_loss
from align.training.train import run
from tests.support import missing, training_data
from tests.support.training_data import MODEL, pretrain_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

#: torch's warnings about its own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf.*:UserWarning"),
]


@pytest.fixture
def backend(monkeypatch):
    """Compiles with dynamo and autograd, without the C++ compiler, which takes minutes."""
    compile = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(train_module, "require_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="aot_eager", **options))
    loss_module._compiled.cache_clear()
    counters.clear()
    yield
    loss_module._compiled.cache_clear()
    torch._dynamo.reset()


def plan(data, checkpoints, model=MODEL, **changes):
    return training_data.plan(data, checkpoints, pretrain_config(**changes), model=model)


LESS_MEMORY = {"micro_batch": 4, "gradient_checkpointing": "cheap"}  # compiled with and without gradients, run twice


@pytest.mark.tools
@pytest.mark.parametrize(("less_memory", "num_stages"), [(LESS_MEMORY, 2), (LESS_MEMORY, 7), ({}, 7)])
def test_a_compiled_run_is_the_same_run(data, tmp_path, monkeypatch, backend, less_memory, num_stages):
    monkeypatch.setattr(image_tower, "_STAGES", image_tower._STAGES[:num_stages])
    short = {"num_steps": 4, "warmup_steps": 1, "learning_rate": 0.005, "log_every_steps": 1}
    plain = run(plan(data, tmp_path / "plain", **short))
    compiled = run(plan(data, tmp_path / "compiled", compile=True, **short, **less_memory))
    assert plain is not None and compiled is not None
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 0
    for mine, other in zip(compiled.rows, plain.rows, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, weight in plain.model.state_dict().items():
        if weight.ndim > 1:  # a shift that batch-norm cancels follows rounding
            torch.testing.assert_close(compiled.model.state_dict()[name], weight, atol=1e-3, rtol=1e-2, msg=name)


def test_texts_of_any_length_and_repeated_layers_are_one_graph(backend):
    torch.manual_seed(0)
    text = {"width": 16, "layers": 3, "heads": 2}
    model = DualEncoder(ModelConfig.model_validate(MODEL.model_dump() | {"text_tower": text}), 50).train()

    def embed(batch, length):
        ids = torch.randint(5, 50, (batch, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[0, 2:] = 0
        return model.encode_text(ids, mask)

    sizes = [(batch, length) for batch in (8, 6) for length in range(3, 17)]
    plain = [embed(*size).detach() for size in sizes]
    with accelerated(model, pretrain_config(compile=True), CPU):
        for expected, size in zip(plain, sizes, strict=True):
            torch.testing.assert_close(embed(*size).detach(), expected, atol=1e-5, rtol=1e-4)
        assert counters["stats"]["unique_graphs"] == 1
        with as_written(), torch.no_grad():
            model.eval().encode_image(torch.zeros(5, 3, 32, 32))
            embed(5, 9)
        assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.tools
def test_inductor_compiles_a_layer(tmp_path, monkeypatch):
    """The compiler that a run uses, on the smallest layer."""
    if shutil.which("g++") is None:
        missing("inductor needs g++")
    # it passes torch's folder to the linker without quotes, so a path with a space does not link
    (tmp_path / "lib").symlink_to(cpp_extension.TORCH_LIB_PATH)
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(tmp_path / "lib"))
    torch.manual_seed(0)
    layer = DualEncoder(MODEL, 50).text_model.encoder.layer[0]
    hidden = torch.randn(2, 5, 16)
    expected = layer(hidden)
    compiled = torch.compile(layer.forward, dynamic=True)
    torch.testing.assert_close(compiled(hidden), expected, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


def test_a_machine_that_cannot_compile_says_so_at_once(data, tmp_path, monkeypatch):
    asked = plan(data, tmp_path / "run", compile=True)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(tmp_path / "my environment"))
    with pytest.raises(ConfigError, match=r"a space in .*my environment"):
        run(asked)
    monkeypatch.undo()
    monkeypatch.setattr(inductor_config.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        run(asked)
    assert not (tmp_path / "run").exists()


def test_a_gpu_without_what_triton_needs_says_so_at_once(data, tmp_path, monkeypatch):
    asked = plan(data, tmp_path / "run", compile=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"for a GPU torch needs .*a C compiler"):
        run(asked)
    assert not (tmp_path / "run").exists()


def test_where_it_is_left_open_a_gpu_without_it_is_worth_a_warning(monkeypatch, capsys):
    left_open = pretrain_config(compile=None)
    require_compiler(left_open)  # a CPU
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CC", "no-such-compiler")
    require_compiler(left_open)
    require_compiler(pretrain_config(compile=False))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "warning: compile: for a GPU torch needs " in said and "a C compiler" in said


@pytest.mark.parametrize(("compile", "there", "lacking", "is_compiled"), [
    (None, CUDA, [], True), (None, CUDA, ["Triton"], False), (None, CPU, [], False), (False, CUDA, [], False),
    (True, CPU, [], True),
])  # fmt: skip
def test_towers_and_loss_are_compiled_together(monkeypatch, backend, compile, there, lacking, is_compiled):
    monkeypatch.setattr(acceleration, "triton_lacks", lambda: lacking)
    model, tile = DualEncoder(MODEL, 50), torch.ones(2, 3)
    with accelerated(model, pretrain_config(compile=compile), there):
        assert all(("forward" in vars(block)) == is_compiled for block in model.vision_model.encoder.blocks)
        if there == CUDA:
            loss_module._compiled(loss_module._log_sums_apart)(tile, tile[:, 0], tile[0])
    assert (counters["stats"]["unique_graphs"] > 0) == (is_compiled and there == CUDA)


def test_a_compiler_that_fails_is_one_clear_line(monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no working triton\nand a page of code")

    compile = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=fails, **options))
    model = DualEncoder(MODEL, 50).train()
    with (
        pytest.raises(ConfigError, match=r"^compile: torch fails: .*no working triton; set compile to false$"),
        accelerated(model, pretrain_config(compile=True), CPU),
    ):
        model.encode_image(torch.zeros(4, 3, 32, 32))
    torch._dynamo.reset()


def _switches():
    cudnn = torch.backends.cudnn
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": cudnn.allow_tf32, "benchmark": cudnn.benchmark}


def test_cuda_settings_are_set_and_reset(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    model, recipe, before = DualEncoder(MODEL, 50), pretrain_config(), _switches()
    with pytest.raises(KeyboardInterrupt), accelerated(model, recipe, CUDA):
        assert _switches() == {"matmul": True, "cudnn": True, "benchmark": True} != before
        raise KeyboardInterrupt
    assert _switches() == before
    with accelerated(model, recipe, CPU):
        assert _switches() == before


def test_freed_memory_is_kept_in_a_run_and_returned_after_it():
    process, size = psutil.Process(), 256 << 20

    def use():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    start = process.memory_info().rss
    with freed_memory_kept():
        use()
        assert use() < 100  # page faults: 65,536 if every page is new
        assert process.memory_info().rss - start > size // 2
    assert process.memory_info().rss - start < size // 2
    use()
    assert process.memory_info().rss - start < size // 2


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        done = torch.ones(3).sum()
    assert done == 3


def test_the_loss_is_never_computed_in_tf32(monkeypatch):
    seen = []
    mm = torch.mm

    def watch(*args, **kwargs):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return mm(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", watch)
    images, texts = (torch.randn(4, 3).requires_grad_() for _ in range(2))
    with accelerated(DualEncoder(MODEL, 50), pretrain_config(), CUDA):
        (align_loss(images, texts, 0.1) + sigmoid_loss(images, texts, 0.1, -10.0)).backward()
        assert torch.backends.cuda.matmul.allow_tf32
    assert seen == [False] * 3
