"""Files of torch.save, against torch.load; those that are damaged or made to do harm are refused."""

import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from cyclestarnet import ModelFileError
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.published import read_payne_checkpoint, read_payne_npz

SHARED = torch.arange(12.0)
CONTENTS = {
    "tensors": {dtype: torch.arange(6).to(dtype).reshape(2, 3) for dtype in (torch.float32, torch.int64, torch.bool)},
    "views": {"whole": SHARED, "part": SHARED[2:8:2], "turned": SHARED.reshape(3, 4).T},
    "half": {"half": torch.ones(3, dtype=torch.float16), "brain": torch.full((2,), 0.1, dtype=torch.bfloat16)},
    "bytes": {"short": torch.arange(3).to(torch.uint16)},
    "empty": {"none": torch.empty(0, 3), "one": torch.tensor(2.5, dtype=torch.float64)},
    "state dict": torch.nn.Linear(2, 3).state_dict(),
    "plain": {"a": [1, -2, 2**70, 0.5, None, True, "σ", b"\xff"], 3: ((), (1,), (1, 2), (1, 2, 3, 4)), (1, "b"): {2}},
    "parameter": {"w": torch.nn.Parameter(torch.ones(2))},
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=list(CONTENTS))
def test_content_is_that_of_torch(tmp_path, content, zipped):
    if content is CONTENTS["tensors"]:
        content = {str(name): value for name, value in content.items()}
    if content is CONTENTS["bytes"] and not zipped:
        pytest.skip("torch itself cannot write these to an old file")
    torch.save(content, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "state.pt", weights_only=True)
    assert same(expected, load_state(tmp_path / "state.pt"))


def test_views_share_their_storage(tmp_path):
    torch.save(CONTENTS["views"], tmp_path / "state.pt")
    read = load_state(tmp_path / "state.pt")
    read["whole"][2] = -1
    assert read["part"][0] == -1


@pytest.mark.parametrize("dtype", ["f2", ">f4", "<f8", "i8", ">u2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers(tmp_path, dtype, order):
    array = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    torch.save({"array": array, "scalar": array[1, 2]}, tmp_path / "state.pt")
    read = load_state(tmp_path / "state.pt")
    np.testing.assert_array_equal(read["array"], array)
    assert read["scalar"] == array[1, 2]


def test_dictionaries_of_other_classes_are_plain(tmp_path):
    content = {"a": defaultdict(list, {"x": [1]}), "b": Counter("aab"), "c": OrderedDict(x=1)}
    torch.save(content, tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt") == {"a": {"x": [1]}, "b": {"a": 2, "b": 1}, "c": {"x": 1}}


# -- what is refused ----------------------------------------------------------------------
class Calls:
    """Pickled as a call of a function with these arguments, and perhaps a state for what it returns."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def dtype_of(state):
    return Calls(np.dtype, ("V8", False, True), state)


HUGE = (3, "|", None, ("a",), {"a": (np.dtype("f8"), 2**40)}, 8, 1, 16)
EMPTY = Calls(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, [1]))
HOSTILE = {
    "array that is called": Calls(np.ndarray, ((1,), "O", b"\x01" * 8)),
    "array of objects": np.array([{}, None], dtype=object),
    "array of objects by its state": EMPTY,
    "fields with huge offsets": Calls(np._core.multiarray.scalar, (dtype_of(HUGE), b"\x00" * 8)),
    "sub-array": np.zeros(2, dtype=[("a", "f8", (2,))]),
    "type of fields": np.dtype([("a", "f8")]),
    "array of texts": np.array(["a"]),
    "array of dates": np.array(["2020-01-01"], dtype="M8[D]"),
    "large array of nothing": Calls(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"),
                                    (1, (2**40,), np.dtype("f8"), False, b"\x00" * 8)),
    "negative shape": Calls(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"),
                            (1, (-1,), np.dtype("f8"), False, b"\x00" * 8)),
    "bytes by the billion": Calls(bytearray, (2**34,)),
    "function": Calls(eval, ("1 + 1",)),
    "sparse tensor": torch.eye(3).to_sparse(),
    "module": torch.nn.Linear(2, 2),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", HOSTILE.values(), ids=list(HOSTILE))
def test_all_but_plain_numbers_is_refused(tmp_path, value, zipped):
    torch.save(
        {"Payne": {"0.weight": value}, "y_min": 0, "y_max": 1},
        tmp_path / "evil.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ModelFileError, match=r"evil\.pt is damaged or no file of plain weights"):
        read_payne_checkpoint(tmp_path / "evil.pt")


def rewritten(path, change):
    """The archive again, with right checksums, and the pickle in it changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x04tq", b"J\xff\xff\xff\x0ftq"),  # the storage is longer
        (b"K\x04\x85q", b"J\xff\xff\xff\x0f\x85q"),  # the tensor is
        (b"K\x01\x85q", b"J\xff\xff\xff\x0f\x85q"),  # its steps are
        (b"K\x01\x85q", b"J\xff\xff\xff\xff\x85q"),  # ... backwards
        (b"K\x00K\x04", b"K\x02K\x04"),  # it begins later
        (b"K\x00K\x04\x85q\x08K\x01", b"K\x00M\xff\xff\x85q\x08K\x00"),  # it repeats what is there
        (b"FloatStorage", b"DoubleStorage"),
    ],
)
def test_tensor_beyond_its_data_is_refused(tmp_path, old, new):
    save_state({"w": torch.arange(4.0)}, tmp_path / "state.pt")
    rewritten(tmp_path / "state.pt", lambda content: content.replace(old, new, 1))
    with pytest.raises(ModelFileError, match=r"state\.pt is damaged"):
        load_state(tmp_path / "state.pt")


def tuples_of_tuples(depth):
    """Instructions for a tuple that holds another twice, and so on: 2**depth values in a few bytes."""
    value = ("a",)
    for _ in range(depth):
        value = (value, value)
    return pickle.dumps(value, protocol=2)[2:-1]


def test_few_bytes_cannot_name_more_values_than_fit(tmp_path):
    save_state({"w": 1}, tmp_path / "state.pt")
    rewritten(tmp_path / "state.pt", lambda _: b"\x80\x02}K\x01" + tuples_of_tuples(30) + b"s.")
    with pytest.raises(ModelFileError, match="holds more than"):
        load_state(tmp_path / "state.pt")


def test_key_whose_hash_takes_forever(tmp_path):
    save_state({"w": 1}, tmp_path / "state.pt")
    rewritten(tmp_path / "state.pt", lambda _: b"\x80\x02}" + tuples_of_tuples(60) + b"K\x01s.")
    with pytest.raises(ModelFileError, match="keys must be plain values"):
        load_state(tmp_path / "state.pt")


def test_list_within_itself(tmp_path):
    content = {"a": []}
    content["a"].append(content)
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(ModelFileError, match="within itself"):
        load_state(tmp_path / "state.pt")


def test_no_change_of_a_byte_gives_other_weights(tmp_path, rng):
    state = {"w": torch.arange(40.0), "iteration": 7}
    save_state(state, tmp_path / "state.pt")
    content = (tmp_path / "state.pt").read_bytes()
    refused = 0
    for place in rng.choice(len(content), 300, replace=False):
        changed = bytearray(content)
        changed[place] ^= rng.integers(1, 256)
        (tmp_path / "state.pt").write_bytes(changed)
        try:
            assert same(load_state(tmp_path / "state.pt"), state)
        except ModelFileError:
            refused += 1
    assert refused > 150


def test_old_file_that_is_cut(tmp_path):
    torch.save({"w": torch.arange(40.0)}, tmp_path / "state.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "state.pt").read_bytes()
    for n_bytes in range(0, len(content), 7):
        (tmp_path / "state.pt").write_bytes(content[:n_bytes])
        with pytest.raises(ModelFileError):
            load_state(tmp_path / "state.pt")


def test_compressed_archive_is_none_of_torch(tmp_path):
    save_state({"w": torch.zeros(1000)}, tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "state.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "state.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelFileError, match="compressed"):
        load_state(tmp_path / "state.pt")


def test_content_must_be_a_dictionary(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "state.pt")
    with pytest.raises(ModelFileError, match="holds a list, where a dictionary"):
        load_state(tmp_path / "state.pt")


# -- The Payne's files --------------------------------------------------------------------
@pytest.fixture
def arrays(rng):
    sizes = (3, 5, 5, 11)
    out = {f"w_array_{k}": rng.normal(size=(sizes[k + 1], sizes[k])) for k in range(3)}
    out |= {f"b_array_{k}": rng.normal(size=sizes[k + 1]) for k in range(3)}
    return out | {"x_min": np.array([3500.0, 0.0, -2.5]), "x_max": np.array([6500.0, 5.0, 0.5])}


def write_npz(arrays, path):
    np.savez(path, **arrays)
    return read_payne_npz, path


def write_checkpoint(arrays, path):
    payne = {
        f"{2 * k}.{name}": torch.tensor(arrays[f"{name[0]}_array_{k}"]) for k in range(3) for name in ("weight", "bias")
    }
    torch.save({"Payne": payne, "y_min": arrays["x_min"], "y_max": arrays["x_max"]}, path.with_suffix(".tar"))
    return read_payne_checkpoint, path.with_suffix(".tar")


@pytest.mark.parametrize("write", [write_npz, write_checkpoint])
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("w_array_1", (0, 0), np.nan, "must be an array of finite numbers"),
        ("b_array_2", 3, np.inf, "must be an array of finite numbers"),
        ("w_array_0", (0, 0), 1e300, "must be an array of finite numbers"),
        ("x_min", 1, np.nan, "must be an array of finite numbers"),
        ("x_max", 2, np.inf, "must be an array of finite numbers"),
        ("x_min", 1, 5.0, r"do not rise at the labels \[1\]"),
        ("x_max", 0, 100.0, r"do not rise at the labels \[0\]"),
    ],
)
def test_impossible_numbers_of_the_payne(arrays, tmp_path, write, name, place, value, message):
    arrays[name][place] = value
    read, path = write(arrays, tmp_path / "payne.npz")
    with pytest.raises(ModelFileError, match=message):
        read(path)


@pytest.mark.parametrize("write", [write_npz, write_checkpoint])
def test_ranges_of_other_lengths(arrays, tmp_path, write):
    arrays["x_max"] = arrays["x_max"][:2]
    read, path = write(arrays, tmp_path / "payne.npz")
    with pytest.raises(ModelFileError, match="have other lengths"):
        read(path)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array(["2020"], dtype="M8[Y]")])
def test_npz_of_other_things_than_numbers(arrays, tmp_path, array):
    np.savez(tmp_path / "payne.npz", **arrays, other=array)
    with pytest.raises(ModelFileError, match="'other' must be an array of real numbers"):
        read_payne_npz(tmp_path / "payne.npz")


def test_npz_whose_header_asks_for_less(arrays, tmp_path):
    np.savez(tmp_path / "payne.npz", **arrays)
    content = (tmp_path / "payne.npz").read_bytes()
    assert content.count(b"'shape': (11,)") == 1
    (tmp_path / "payne.npz").write_bytes(content.replace(b"'shape': (11,)", b"'shape': (10,)"))
    with pytest.raises(ModelFileError, match="does not fit its checksum"):
        read_payne_npz(tmp_path / "payne.npz")


def test_member_that_is_there_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "payne.npz", "w") as archive:
        archive.writestr("w_array_0.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("w_array_0.npy", b"")
    with pytest.raises(ModelFileError, match="two members have the same name"):
        read_payne_npz(tmp_path / "payne.npz")
