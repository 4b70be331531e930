"""The reader takes what torch.save writes and refuses everything else with one error."""

import collections
import io
import pickle
import random
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.torch_writer import write_state_dict
from semsam_jax.core.errors import ConversionError

DATA = Path(__file__).parent.parent / "golden" / "data"
MAGIC = 0x1950A86A20F9469CFC6C


def tensor_op(kind, key, numel, offset, shape, strides):
    """Instructions for one tensor, written by hand (torch is not installed)."""
    pid = b"(X\7\0\0\0storage" + f"ctorch\n{kind}\nS'{key}'\nS'cpu'\nL{numel}L\ntQ".encode()
    ints = "".join("(" + "".join(f"L{n}L\n" for n in values) + "t" for values in (shape, strides))
    body = pid + f"L{offset}L\n{ints}".encode() + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


def one_tensor(kind="FloatStorage", numel=6, offset=0, shape=(2, 3), strides=(3, 1)):
    return b"\x80\x02}S'w'\n" + tensor_op(kind, "0", numel, offset, shape, strides) + b"s."


def archive(path, data_pkl, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("m/data.pkl", data_pkl)
        for key, data in storages.items():
            z.writestr(f"m/data/{key}", data)
        z.writestr("m/version", "3\n")
    return path


def legacy(path, tree, storages, little_endian=True):
    """The stream of pickles that torch.save wrote before 1.6."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, system)]
    parts += [tree, pickle.dumps(list(storages), 2)]
    for data, numel in storages.values():
        parts += [struct.pack("<q", numel), data]
    path.write_bytes(b"".join(parts))
    return path


SIX = np.arange(6, dtype=np.float32)


def test_golden_checkpoint_is_read_and_unwrapped():
    state = read_state_dict(DATA / "tiny_ref.pth")
    assert len(state) == 355
    model = unwrap(state)
    assert "criterion.empty_weight" in model
    assert model["backbone.patch_embed.proj.weight"].shape == (24, 3, 4, 4)
    index = model["backbone.layers.0.blocks.0.attn.relative_position_index"]
    assert index.dtype == np.int64
    assert index.max() == 168
    scale = model["sem_seg_head.predictor.lang_encoder.logit_scale"]
    assert scale.shape == ()
    np.testing.assert_allclose(scale, 1.7, rtol=1e-6)
    # The known weights of the recorded deformable attention module.
    units = np.load(DATA / "units.npz")
    named = [key for key in units if key.startswith("msdeform_module") and "model." in key]
    for key in named:
        np.testing.assert_array_equal(units[key], state[key[key.index("model.") :]])


def test_unwrap_follows_the_rules_of_the_original():
    array = np.zeros(2)
    assert unwrap({"model": {"model.a": array}, "iteration": 3}).keys() == {"a"}
    assert unwrap({"model.a": array, "other": array}).keys() == {"a"}
    assert unwrap({"a": array}).keys() == {"a"}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FloatStorage", "<f4"),
        ("DoubleStorage", "<f8"),
        ("HalfStorage", "<f2"),
        ("LongStorage", "<i8"),
        ("IntStorage", "<i4"),
        ("ShortStorage", "<i2"),
        ("CharStorage", "i1"),
        ("ByteStorage", "u1"),
        ("BoolStorage", "?"),
    ],
)
def test_element_types(tmp_path, kind, dtype):
    data = np.array([0, 1, 1, 0, 1, 1], dtype)
    read = read_state_dict(archive(tmp_path / "a.pth", one_tensor(kind), {"0": data.tobytes()}))
    assert read["w"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read["w"], data.reshape(2, 3))
    old = legacy(tmp_path / "b.pth", one_tensor(kind), {"0": (data.tobytes(), 6)})
    np.testing.assert_array_equal(read_state_dict(old)["w"], data.reshape(2, 3))


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.5, -2.0, 0.0, 1e-3, 3e38, 7.0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    pkl = one_tensor("BFloat16Storage")
    read = read_state_dict(archive(tmp_path / "a.pth", pkl, {"0": bits.tobytes()}))["w"]
    assert read.dtype == np.float32
    np.testing.assert_allclose(read.ravel(), values, rtol=1 / 128)


def test_strides_offsets_and_shared_storage(tmp_path):
    items = (
        b"S'all'\n" + tensor_op("FloatStorage", "0", 6, 0, (6,), (1,)),
        b"S'turned'\n" + tensor_op("FloatStorage", "0", 6, 0, (3, 2), (1, 3)),
        b"S'tail'\n" + tensor_op("FloatStorage", "0", 6, 4, (2,), (1,)),
        b"S'scalar'\n" + tensor_op("FloatStorage", "0", 6, 5, (), ()),
        b"S'empty'\n" + tensor_op("FloatStorage", "0", 6, 0, (0, 3), (3, 1)),
    )
    pkl = b"\x80\x02}(" + b"".join(items) + b"u."
    read = read_state_dict(archive(tmp_path / "a.pth", pkl, {"0": SIX.tobytes()}))
    np.testing.assert_array_equal(read["turned"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(read["tail"], SIX[4:])
    assert read["scalar"] == 5
    assert read["scalar"].shape == ()
    assert read["empty"].shape == (0, 3)
    assert np.shares_memory(read["all"], read["tail"])


@pytest.mark.parametrize(
    "fields",
    [
        {"numel": 7},
        {"numel": 5},
        {"offset": 1},
        {"offset": -1},
        {"strides": (-3, 1)},
        {"strides": (2**62, 2**62)},
        {"shape": (2**40, 2**40)},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (0, 2**62), "strides": (1, 1)},
        {"shape": (2, 3, 1)},
        {"shape": (1,) * 40, "strides": (0,) * 40},
        {"offset": 2**70},
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, fields):
    pkl = one_tensor(**fields)
    with pytest.raises(ConversionError, match=r"a\.pth"):
        read_state_dict(archive(tmp_path / "a.pth", pkl, {"0": SIX.tobytes()}))
    with pytest.raises(ConversionError, match=r"b\.pth"):
        read_state_dict(legacy(tmp_path / "b.pth", pkl, {"0": (SIX.tobytes(), 6)}))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_in_the_pickle_runs(tmp_path, protocol):
    trace = tmp_path / "trace"
    pkl = pickle.dumps({"w": Evil(trace)}, protocol)
    for path in (
        archive(tmp_path / "a.pth", pkl, {}),
        legacy(tmp_path / "b.pth", pkl, {}),
    ):
        with pytest.raises(ConversionError, match=r"io\.open"):
            read_state_dict(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    ["os system", "builtins eval", "torch load", "torch.hub load", "numpy.core.multiarray scalar"],
)
def test_foreign_globals_are_named(tmp_path, name):
    pkl = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n(S'x'\ntR."
    with pytest.raises(ConversionError, match=name.replace(" ", r"\.")):
        read_state_dict(archive(tmp_path / "a.pth", pkl, {}))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    for content, reason in [
        (b"", "not a PyTorch checkpoint"),
        (b"hello world, this is text", "not a PyTorch checkpoint"),
        (pickle.dumps({"a": 1}), "not a PyTorch checkpoint"),
        (b"PK\3\4" + bytes(50), "damaged or truncated"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=reason):
            read_state_dict(path)
    with pytest.raises(ConversionError, match="cannot be read"):
        read_state_dict(tmp_path / "missing.pth")
    with pytest.raises(ConversionError, match="cannot be read"):
        read_state_dict(tmp_path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("readme.txt", "no checkpoint")
    with pytest.raises(ConversionError, match=r"0 data\.pkl"):
        read_state_dict(path)
    with pytest.raises(ConversionError, match="no tensors"):
        read_state_dict(archive(path, pickle.dumps({"a": 1}, 2), {}))
    with pytest.raises(ConversionError, match="expected a state dict"):
        read_state_dict(archive(path, pickle.dumps([1], 2), {}))
    with pytest.raises(ConversionError, match="is missing"):
        read_state_dict(archive(path, one_tensor(), {}))
    with pytest.raises(ConversionError, match="big-endian"):
        read_state_dict(legacy(path, one_tensor(), {"0": (SIX.tobytes(), 6)}, False))


def test_bombs_do_not_go_off(tmp_path):
    path = tmp_path / "a.pth"
    bomb = archive(path, one_tensor(), {"0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ConversionError, match="compressed"):
        read_state_dict(bomb)
    # A memo index of four billion, self-containing dicts, and a list counted again and again.
    for pkl in (
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"\x80\x02}q\0S'model'\nh\0s.",
        b"\x80\x02(" + b"]" * 60000 + b"lq\0" + b"0ccollections\nOrderedDict\n(h\0tR" * 100 + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x02" + b")" * 5000 + b"\x85" * 5000 + b"}(" + b"S'a'\nNu.",
        b"\x80\x02}S'w'\n" + b")" + b"\x85" * 200000 + b"Ns.",
    ):
        with pytest.raises(ConversionError):
            read_state_dict(archive(path, pkl, {}))


def test_byte_flips_and_truncations_never_surprise(tmp_path):
    """Any damage gives a ConversionError or a valid result, in bounded memory."""
    rng = random.Random(0)
    state = {f"model.layer.{i}.weight": np.full((3, i + 1), i, np.float32) for i in range(6)}
    write_state_dict(tmp_path / "new.pth", state, aliases={"model.tied": next(iter(state))})
    old = legacy(tmp_path / "old.pth", one_tensor(), {"0": (SIX.tobytes(), 6)})
    bare = archive(tmp_path / "bare.pth", one_tensor(), {"0": SIX.tobytes()})
    path = tmp_path / "fuzzed.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for original in ((tmp_path / "new.pth"), old, bare):
        good = original.read_bytes()
        for _ in range(1500):
            data = bytearray(good)
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            for _ in range(rng.choice((0, 1, 1, 2, 8))):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data)
            try:
                read = read_state_dict(path)
            except ConversionError:
                refused += 1
            else:
                assert all(isinstance(v, np.ndarray) for v in read.values())
    assert refused > 1500
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kilobytes


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_pickles_damaged_behind_an_intact_checksum(tmp_path):
    """What is read in spite of the damage are the stored values; everything else is refused."""
    rng = random.Random(1)
    good = one_tensor()
    num_read = 0
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(rng.choice((1, 2, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read = read_state_dict(archive(tmp_path / "f.pth", bytes(data), {"0": SIX.tobytes()}))
        except ConversionError:
            continue
        num_read += 1
        for values in read.values():
            assert values.dtype == SIX.dtype
            assert set(values.ravel().tolist()) <= set(SIX.tolist())
    assert 0 < num_read < 100


def test_functions_of_a_pickle_cannot_be_changed(tmp_path):
    """`BUILD` on what a global stands for, and on a storage that has been checked."""
    body = one_tensor()[2:-1]
    change = b"}S'shape'\n(L9L\ntsb"
    attacks = [
        b"ctorch._utils\n_rebuild_tensor_v2\n" + change + b"0" + body + b".",
        b"ctorch\nFloatStorage\n" + change + b"0" + body + b".",
        body[:-1] + change + b"s.",
    ]
    for attack in attacks:
        with pytest.raises(ConversionError, match="damaged"):
            read_state_dict(archive(tmp_path / "a.pth", b"\x80\x02" + attack, {"0": bytes(24)}))
    read = read_state_dict(archive(tmp_path / "b.pth", one_tensor(), {"0": SIX.tobytes()}))
    assert read["w"].shape == (2, 3)


def test_state_dict_attributes_are_harmless(tmp_path):
    described = collections.OrderedDict(_metadata=1)
    stream = io.BytesIO()
    pickle.Pickler(stream, 2).dump(described)
    with pytest.raises(ConversionError, match="no tensors"):
        read_state_dict(archive(tmp_path / "a.pth", stream.getvalue(), {}))
    empty = b"ccollections\nOrderedDict\n)R"
    body = one_tensor()[:-1].replace(b"}", empty, 1) + b"}S'_metadata'\nNsb."
    read = read_state_dict(archive(tmp_path / "b.pth", body, {"0": SIX.tobytes()}))
    assert list(read) == ["w"]


def test_writer_and_reader_agree(tmp_path):
    state = {
        "f": np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32),
        "i": np.arange(3),
        "s": np.float32(1.5),
        "e": np.zeros((0, 3), np.float16),
        "t": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    }
    write_state_dict(tmp_path / "a.pth", state, aliases={"g": "f"}, wrapper="model")
    read = read_state_dict(tmp_path / "a.pth")
    assert list(read) == ["f", "i", "s", "e", "t", "g"]
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == np.asarray(value).dtype
    assert np.shares_memory(read["f"], read["g"])
    with pytest.raises(ConversionError, match="complex64"):
        write_state_dict(tmp_path / "b.pth", {"c": np.zeros(2, np.complex64)})


def load_as_torch_does(path):
    """Python's own unpickler with torch's documented meanings: independent of our reader."""

    def rebuild(storage, offset, size, stride, requires_grad, hooks):
        assert requires_grad is False
        assert hooks == collections.OrderedDict()
        item = storage.itemsize
        strides = [step * item for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)

    kinds = {"FloatStorage": "<f4", "LongStorage": "<i8", "HalfStorage": "<f2", "BoolStorage": "?"}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            known = {"OrderedDict": collections.OrderedDict, "_rebuild_tensor_v2": rebuild}
            return known.get(name) or kinds[name]

        def persistent_load(self, pid):
            word, dtype, key, place, numel = pid
            assert (word, place) == ("storage", "cpu")
            data = np.frombuffer(archive.read(f"{folder}/data/{key}"), dtype)
            assert data.size == numel
            return data

    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].split("/")[0]
        assert {name.split("/")[0] for name in archive.namelist()} == {folder}
        assert archive.read(f"{folder}/version") == b"3\n"
        assert archive.read(f"{folder}/byteorder") == b"little"
        return Unpickler(io.BytesIO(archive.read(f"{folder}/data.pkl"))).load()


def test_written_files_mean_the_same_to_pythons_own_unpickler(tmp_path):
    state = {
        "f": np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32).transpose(2, 0, 1),
        "i": np.arange(12).reshape(3, 4),
        "s": np.float32(1.5),
        "h": np.ones((3,), np.float16),
        "b": np.array([True, False]),
    }
    write_state_dict(tmp_path / "a.pth", state, aliases={"g": "f"}, wrapper="model")
    loaded = load_as_torch_does(tmp_path / "a.pth")
    assert list(loaded) == ["model"]
    assert list(loaded["model"]) == [*state, "g"]
    for name, value in [*state.items(), ("g", state["f"])]:
        np.testing.assert_array_equal(loaded["model"][name], value)
    # The same loader agrees with ours on a file that torch itself wrote.
    recorded = load_as_torch_does(DATA / "tiny_ref.pth")["model"]
    read = read_state_dict(DATA / "tiny_ref.pth")
    assert recorded.keys() == read.keys()
    assert all(recorded[name].tobytes() == read[name].tobytes() for name in read)
