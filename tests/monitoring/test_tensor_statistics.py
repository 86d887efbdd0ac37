"""Statistics against plain float64 PyTorch, on the paths of CPUs and on the batched path of accelerators."""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bert_toolkit.monitoring import cpu_statistics, tensor_statistics
from bert_toolkit.monitoring.tensor_statistics import (
    PendingRows,
    absolute_rows,
    absolute_statistics,
    local_norms,
    local_tensor,
    update_rows,
    update_statistics,
)


@pytest.fixture(params=["small together", "chunks", "batched norms"], autouse=True)
def path(request, monkeypatch):
    """Small tensors take the path of large ones too; that of accelerators takes the place of the CPU's."""
    if request.param == "chunks":
        monkeypatch.setattr(cpu_statistics, "_SMALL", 0)
    if request.param == "batched norms":
        monkeypatch.setattr(tensor_statistics, "local_absolute_rows", tensor_statistics._foreach_absolute_rows)
        monkeypatch.setattr(tensor_statistics, "local_update_rows", tensor_statistics._foreach_update_rows)
    return request.param


def absolute(tensors: list[Tensor]):
    return absolute_statistics(absolute_rows(tensors, [local_tensor(t) for t in tensors]).read())


def check_absolute(tensors: list[Tensor], rtol: float = 1e-5) -> None:
    found = absolute(tensors)
    for i, tensor in enumerate(tensors):
        magnitude = tensor.detach().double().abs()
        assert found.elements[i] == tensor.numel()
        assert found.mean[i] == pytest.approx(float(magnitude.mean()), rel=rtol, nan_ok=True)
        assert found.max[i] == pytest.approx(float(magnitude.max()), rel=rtol, nan_ok=True)
        assert found.std[i] == pytest.approx(float(magnitude.std(correction=0)), rel=rtol, abs=1e-300, nan_ok=True)
        assert found.zero_share[i] == pytest.approx(float((magnitude == 0).double().mean()), abs=1e-12)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    g = generator()
    check_absolute([torch.randn(shape, generator=g).to(dtype) for shape in ((3,), (40, 50), (2, 3, 4), (), (1,))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_are_finite_exactly_where_the_values_are(dtype):
    g = generator()
    tensors = [torch.randn(n, generator=g).to(dtype) for n in (0, 1, 300, 300, 2**18 + 3)]
    tensors += [torch.full((300,), 1e30, dtype=dtype), torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 0.0])]
    norms = torch.stack([norm.double() for norm in local_norms(tensors)])
    torch.testing.assert_close(norms[:6], torch.stack([t.double().norm() for t in tensors[:6]]), rtol=1e-5, atol=0)
    assert not norms[6:].isfinite().any()


def test_several_precisions_at_once():
    g = generator()
    check_absolute([torch.randn(70, generator=g).to(d) for d in (torch.bfloat16, torch.float32, torch.float64)])


@pytest.mark.parametrize("size", [2**17 - 1, 2**17, 2**17 + 1, 3 * 2**17 + 5])
def test_sizes_around_a_chunk(size):
    check_absolute([torch.randn(size, generator=generator())])


def test_chunks_of_very_different_size():
    """A mean guessed from the chunk before must not harm the next one."""
    g = generator()
    big, small = torch.randn(2**17, generator=g), torch.randn(2**17, generator=g) * 1e-6
    check_absolute([torch.cat([big, small]), torch.cat([small, big]), torch.cat([torch.zeros(2**18), small])])


def test_embedding_with_rows_that_got_nothing():
    table = torch.zeros(3000, 96)
    table[::7] = torch.randn(len(table[::7]), 96, generator=generator())
    check_absolute([table])


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_nearly_constant_values_keep_their_spread(spread, path):
    """sqrt(L2^2 / n - mean^2) in fp32 would be wrong by 6 % at 1e-3 and by 250 % at 1e-4."""
    if path == "batched norms" and spread < 1e-5:
        pytest.skip("float64 norms keep the spread down to 1e-5 of the mean")
    check_absolute([1 + spread * torch.randn(200_000, generator=generator()), torch.full((500,), 0.1)])


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-8, 1e8, 1e20, 1e37])
def test_magnitudes_whose_squares_leave_fp32(scale):
    check_absolute([torch.randn(1000, generator=generator()) * scale])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_values_show_in_their_own_tensor_only(bad):
    g = generator()
    tensors = [torch.randn(300_000, generator=g) for _ in range(3)]
    tensors[1][7] = 0.0
    tensors[1][250_000] = bad
    found = absolute(tensors)
    assert np.isfinite(found.mean + found.std).tolist() == [True, False, True]
    assert not math.isfinite(found.max[1]) and math.isnan(found.max[1]) == math.isnan(bad)
    assert found.zero_share[1] == pytest.approx(1 / 300_000)


def test_layouts():
    g = generator()
    base = torch.randn(64, 48, generator=g)
    channels_last = torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last)
    sparse = torch.zeros(30, 4)
    sparse[3] = 2.0
    check_absolute([base.t(), base[:, ::2], channels_last, base.expand(2, 64, 48)])
    found = absolute([sparse.to_sparse(1)])
    assert found.zero_share[0] == pytest.approx(29 / 30) and found.mean[0] == pytest.approx(8 / 120)


def test_zeros_and_empty_tensors():
    found = absolute([torch.zeros(10), torch.zeros(0, 4), torch.ones(3)])
    assert found.elements.tolist() == [10, 0, 3]
    assert found.mean[[0, 2]].tolist() == [0, 1] and found.std[[0, 2]].tolist() == [0, 0]
    assert found.zero_share[[0, 2]].tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
def test_any_finite_values(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    magnitude = tensor.double().abs()
    found = absolute([tensor])
    assert found.mean[0] == pytest.approx(float(magnitude.mean()), rel=1e-5)
    assert found.max[0] == float(magnitude.max())
    # Spread that is far below the values themselves is rounding of float64.
    smallest = 1e-7 * float(magnitude.max())
    assert found.std[0] == pytest.approx(float(magnitude.std(correction=0)), rel=1e-5, abs=smallest)
    assert found.zero_share[0] == pytest.approx(float((magnitude == 0).double().mean()))


def test_many_equal_values_do_not_add_up_their_rounding():
    """Adding one number 100,000 times in fp32, one after the other, would round the same way each time."""
    values = torch.full((2**17,), 0.1)
    values[::2] = 0.3
    check_absolute([values])
    check_update([values * 1.1], [values], 1e-6)


def test_shards_combine_exactly():
    """Rows of three ranks, one of them empty, are as good as the whole tensor."""
    g = generator()
    whole = torch.cat([torch.randn(500, generator=g) * 5, torch.randn(90_000, generator=g)])
    parts = [whole[:500], whole[500:], whole[:0]]
    rows = np.concatenate([absolute_rows([part], [part]).read() for part in parts])
    found = absolute_statistics(rows)
    magnitude = whole.double().abs()
    assert found.elements[0] == len(whole)
    assert found.mean[0] == pytest.approx(float(magnitude.mean()), rel=1e-6)
    assert found.std[0] == pytest.approx(float(magnitude.std(correction=0)), rel=1e-6)
    assert found.max[0] == float(magnitude.max())


def test_rows_of_several_groups_find_their_places():
    pending = PendingRows([([0, 2], torch.ones(2, 2, 3)), ([1], torch.full((1, 1, 3), 2.0))], 3)
    rows = pending.read()
    assert rows.shape == (2, 3, 3)
    assert rows[:, :, 0].tolist() == [[1, 2, 1], [1, 0, 1]]


def check_update(after: list[Tensor], before: list[Tensor], rtol: float) -> None:
    copies = [local_tensor(b).clone() for b in before]
    found = update_statistics(update_rows(after, [local_tensor(a) for a in after], copies).read())
    for i, (new, old) in enumerate(zip(after, before, strict=True)):
        assert found.update_norm[i] == pytest.approx(float((new.double() - old.double()).norm()), rel=rtol)
        assert found.parameter_norm[i] == pytest.approx(float(old.double().norm()), rel=rtol)
        assert found.changed_share[i] == pytest.approx(float((new != old).double().mean()), abs=1e-12)


@pytest.mark.parametrize("step", [1e-1, 1e-5, 1e-8])
def test_update_in_fp32(step):
    g = generator()
    before = [torch.randn(shape, generator=g) * 0.03 for shape in ((3,), (700, 400), (768,))]
    check_update([b + step * torch.randn(b.shape, generator=g) for b in before], before, 1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_update_of_extreme_sizes(scale):
    g = generator()
    before = [torch.randn(5000, generator=g) * scale]
    check_update([before[0] * 1.001], before, 1e-5)


def test_update_in_bf16_where_most_steps_are_rounded_away(path):
    g = generator()
    before = [(torch.randn(400, 300, generator=g) * 0.03).bfloat16()]
    after = [before[0] + 5e-6 * torch.randn(400, 300, generator=g).bfloat16()]
    changed = float((before[0] != after[0]).double().mean())
    assert 0 < changed < 0.3
    # The batched path takes the difference in bf16 itself, which is exact between neighbors.
    check_update(after, before, 1e-5 if path == "chunks" else 4e-3)


def test_zero_parameters_and_no_movement():
    before = [torch.zeros(20), torch.ones(20), torch.zeros(0)]
    after = [torch.full((20,), 1e-3), torch.ones(20), torch.zeros(0)]
    found = update_statistics(update_rows(after, after, [b.clone() for b in before]).read())
    np.testing.assert_allclose(found.update_norm[:2], [math.sqrt(20) * 1e-3, 0], rtol=1e-6)
    assert found.parameter_norm[:2].tolist() == [0, pytest.approx(math.sqrt(20))]
    assert found.changed_share[:2].tolist() == [1, 0]


@pytest.mark.gpu
def test_on_a_gpu():
    g = generator()
    tensors = [
        torch.randn(shape, generator=g).to(d) for shape in ((3,), (700, 400)) for d in (torch.float32, torch.half)
    ]
    tensors.append(1 + 1e-4 * torch.randn(5000, generator=g))
    check_absolute([t.cuda() for t in tensors])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("load", "threads"), [(0.9, 2), (2.0, 1)], ids=["quiet", "busy"])
def test_busy_machines_compute_in_one_thread(monkeypatch, two_threads, load, threads):
    values = [torch.randn(300_000)]
    expected = cpu_statistics.cpu_absolute_rows(values)
    seen = set()
    chunk = cpu_statistics._absolute_chunk

    def watched(*arguments):
        seen.add(torch.get_num_threads())
        return chunk(*arguments)

    monkeypatch.setattr(cpu_statistics, "_absolute_chunk", watched)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (load * 4, 0.0, 0.0))
    rows = cpu_statistics.cpu_absolute_rows(values)
    assert seen == {threads}
    assert torch.get_num_threads() == 2
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0.0)


def test_threads_are_those_of_before_after_an_error(monkeypatch, two_threads):
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    with pytest.raises(RuntimeError):
        cpu_statistics.cpu_update_rows([torch.randn(100_000)], [torch.randn(99_999)])
    assert torch.get_num_threads() == 2


def test_machines_that_do_not_tell_their_load_count_as_quiet(monkeypatch, two_threads):
    monkeypatch.delattr(os, "getloadavg")
    assert cpu_statistics.cpu_norms([torch.ones(40_000)]).tolist() == [200.0]
