"""What "auto" means, on machines that are made up: graphics cards old and new, Apple's, and processors."""

import pytest
import torch

from zodi.support import runs

# Graphics card's compute capability or None, Apple's device, native bfloat16 -> device and type.
MACHINES = [
    ((7, 5), False, True, "cuda", torch.float16),
    ((8, 0), False, False, "cuda", torch.bfloat16),
    ((9, 0), True, True, "cuda", torch.bfloat16),
    (None, True, True, "mps", torch.float32),
    (None, True, False, "mps", torch.float32),
    (None, False, True, "cpu", torch.bfloat16),
    (None, False, False, "cpu", torch.float32),
]


@pytest.fixture
def pretend(monkeypatch):
    """Makes torch believe in a machine; what is put on one of its cards stays on the processor."""

    def call(capability, mps, native, broken=False):
        usable = {"cuda": capability is not None, "mps": mps, "cpu": True}
        zeros = torch.zeros

        def made_up_zeros(*shape, device="cpu"):
            if not usable.get(torch.device(device).type) or broken:
                raise RuntimeError(f"no {device} here\nand a long explanation")
            return zeros(*shape)

        monkeypatch.setattr(torch, "zeros", made_up_zeros)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card 9000")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})

    return call


@pytest.mark.parametrize(("capability", "mps", "native", "device", "dtype"), MACHINES)
def test_auto(pretend, capability, mps, native, device, dtype):
    pretend(capability, mps, native)
    assert runs.best_device() == device
    assert runs.check_device("auto") == torch.device(device)
    assert [runs.best_dtype(where) for where in ("auto", device, torch.device(device))] == [dtype] * 3
    assert runs.check_dtype("auto", device) == runs.check_dtype("auto", "auto") == dtype
    assert runs.environment()["gpu"] == {"cuda": "Card 9000", "mps": "Apple mps", "cpu": None}[device]


@pytest.mark.parametrize(("capability", "mps", "native", "device", "dtype"), MACHINES)
def test_what_one_asks_for_is_what_one_gets(pretend, capability, mps, native, device, dtype):
    pretend(capability, mps, native)
    assert runs.check_device("cpu") == torch.device("cpu")
    assert runs.best_dtype("cpu") == (torch.bfloat16 if native else torch.float32)
    assert runs.check_dtype("float32", device) == runs.check_dtype(torch.float32, device) == torch.float32


@pytest.mark.parametrize(
    ("machine", "asked", "usable"),
    [
        ((None, False, True), "cuda", "cpu: torch finds no graphics card here"),
        ((None, False, True), "mps", "cpu: torch finds no graphics card here"),
        ((None, True, True), "cuda", "auto, cpu or mps"),
        (((8, 0), False, True), "mps", "auto, cpu or cuda"),
    ],
)
def test_another_device_is_refused_in_one_line_that_names_those_of_the_machine(pretend, machine, asked, usable):
    pretend(*machine)
    with pytest.raises(ValueError, match=f"device '{asked}': cannot be used, expected {usable}") as error:
        runs.check_device(asked)
    assert "\n" not in str(error.value)


def test_a_card_that_does_not_work_is_found_out_at_once(pretend):
    pretend((8, 0), False, True, broken=True)
    with pytest.raises(ValueError, match="device 'cuda': cannot be used"):
        runs.check_device("auto")


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="dtype 'float64': expected auto or one of float32, bfloat16, float16"):
        runs.check_dtype("float64", "cpu")


def test_the_text_of_a_device():
    assert runs.device_text("mps") == "mps, float32"
    assert runs.device_text(torch.device("cuda"), torch.bfloat16) == "cuda, bfloat16"


def test_readers_and_the_order_in_memory_go_by_the_kind_of_device(monkeypatch):
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 4)
    devices = ["cpu", "mps", "cuda", "cuda:1", torch.device("cuda")]
    assert [runs.worker_count(device) for device in devices] == [0, 0, 4, 4, 4]
    last, contiguous = torch.channels_last, torch.contiguous_format
    assert [runs.image_format(device) for device in devices] == [last, contiguous, last, last, last]
