"""Records survive the file: nothing pickled, nothing lost, the old file whole after a crash."""

import numpy as np
import pytest
import torch
from torch import nn

from bert_toolkit import InputError
from bert_toolkit.monitoring import GradientFlowRecord, UpdateRatioRecord, describe_parameters
from bert_toolkit.monitoring.record_file import load_records, save_records

MODEL = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
PARAMETERS = describe_parameters(MODEL)


def gradients(step: int, names: tuple[str, ...], **changes) -> GradientFlowRecord:
    values = np.random.default_rng(step).random((5, len(names)))
    return GradientFlowRecord(step, names, *values, **changes)


RECORDS = [
    gradients(1, ("0.weight", "2.weight"), clip_coefficient=0.25, missing=("0.bias",)),
    gradients(50, ("0.weight", "0.bias", "2.weight"), nonfinite=("0.bias", "2.weight"), skipped=True),
    gradients(100, ("0.bias",), clip_coefficient=float("nan")),
]


def test_round_trip(tmp_path):
    file = tmp_path / "monitoring" / "gradient_flow.npz"
    save_records(file, RECORDS, PARAMETERS)
    loaded = load_records(file, GradientFlowRecord)
    assert len(loaded) == 3
    for one, other in zip(RECORDS, loaded, strict=True):
        assert (other.step, other.names, other.nonfinite) == (one.step, one.names, one.nonfinite)
        assert (other.missing, other.skipped) == (one.missing, one.skipped)
        assert type(other.step) is int and type(other.skipped) is bool and type(other.names[0]) is str
        np.testing.assert_equal(other.clip_coefficient, one.clip_coefficient)
        for statistic in ("count", "mean", "max", "std", "zero_share"):
            np.testing.assert_array_equal(getattr(other, statistic), getattr(one, statistic))


def test_update_ratios_with_values_that_are_not_finite(tmp_path):
    record = UpdateRatioRecord(
        4,
        ("0.weight", "0.bias"),
        np.array([np.nan, np.inf]),
        np.array([0.0, -0.0]),
        np.array([1e-300, 1e300]),
        np.array([0.5, 1.0]),
        skipped=True,
    )
    save_records(tmp_path / "u.npz", [record], PARAMETERS)
    (loaded,) = load_records(tmp_path / "u.npz", UpdateRatioRecord)
    np.testing.assert_array_equal(loaded.ratio, record.ratio)
    np.testing.assert_array_equal(loaded.parameter_norm, record.parameter_norm)


def test_later_records_are_left_out(tmp_path):
    save_records(tmp_path / "g.npz", RECORDS, PARAMETERS)
    assert [r.step for r in load_records(tmp_path / "g.npz", GradientFlowRecord, last_step=50)] == [1, 50]
    assert load_records(tmp_path / "g.npz", GradientFlowRecord, last_step=0) == []


def test_file_can_be_read_with_numpy_alone(tmp_path):
    save_records(tmp_path / "g.npz", RECORDS, PARAMETERS)
    with np.load(tmp_path / "g.npz", allow_pickle=False) as file:
        assert file["step"].tolist() == [1, 50, 100]
        assert file["names"].tolist() == ["0.weight", "0.bias", "2.weight"], "the model's order"
        assert file["roles"].tolist() == ["matrix", "bias", "matrix"]
        assert file["blocks"].tolist() == ["layer.0", "layer.0", "layer.2"]
        assert np.isnan(file["mean"][0, 1]) and not file["names_present"][0, 1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arrays: arrays.pop("mean"), "holds no array 'mean'"),
        (lambda arrays: arrays.update(mean=arrays["mean"][:, :2]), r"'mean' is of type float64 and shape \(3, 2\)"),
        (lambda arrays: arrays.update(step=np.array([1.0, 2.0, 3.0])), "'step' is of type float64"),
        (lambda arrays: arrays.update(names=np.array([1, 2, 3])), "'names' is of type int64"),
    ],
    ids=["missing", "shape", "steps", "names"],
)
def test_damaged_file_is_named(tmp_path, damage, message):
    save_records(tmp_path / "g.npz", RECORDS, PARAMETERS)
    with np.load(tmp_path / "g.npz") as file:
        arrays = dict(file)
    damage(arrays)
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_records(tmp_path / "g.npz", GradientFlowRecord)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"words", b"\x80\x04."])
def test_file_that_is_no_npz_is_named(tmp_path, content):
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(InputError, match="g.npz is damaged or no npz file of plain arrays") as told:
        load_records(tmp_path / "g.npz", GradientFlowRecord)
    assert "put back a whole copy, or delete it" in str(told.value) and "pickle" not in str(told.value)


def test_a_single_array_without_a_name_is_no_record_file(tmp_path):
    with (tmp_path / "g.npz").open("wb") as file:
        np.save(file, np.zeros((2, 3)))
    with pytest.raises(InputError, match="damaged or no npz file of plain arrays"):
        load_records(tmp_path / "g.npz", GradientFlowRecord)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_records(tmp_path, GradientFlowRecord)


def test_pickle_is_not_opened(tmp_path):
    np.savez(tmp_path / "g.npz", names=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="damaged or no npz file of plain arrays"):
        load_records(tmp_path / "g.npz", GradientFlowRecord)


def test_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    save_records(tmp_path / "g.npz", RECORDS[:1], PARAMETERS)

    def fail(file, **arrays):
        file.write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="no space"):
        save_records(tmp_path / "g.npz", RECORDS, PARAMETERS)
    assert list(tmp_path.iterdir()) == [tmp_path / "g.npz"]
    assert [r.step for r in load_records(tmp_path / "g.npz", GradientFlowRecord)] == [1]


def test_file_is_compact(tmp_path):
    names = tuple(f"{i:03}.weight" for i in range(200))
    records = [gradients(step, names) for step in range(1, 101)]
    save_records(tmp_path / "g.npz", records, {})
    assert (tmp_path / "g.npz").stat().st_size < 100 * 200 * 5 * 8 * 1.05 + 20_000
    assert torch.equal(
        torch.tensor(load_records(tmp_path / "g.npz", GradientFlowRecord)[7].mean), torch.tensor(records[7].mean)
    )
